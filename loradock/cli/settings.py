"""The `settings` verb: every variable that is read, what holds now, and what each means."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from loradock.cli.command import Command
from loradock.cli.options import json_option
from loradock.cli.output import emit
from loradock.registry import secret
from loradock.registry.errors import BadInput
from loradock.registry.output import say
from loradock.registry.settings import FromEnvironment, Settings
from loradock.registry.store import masked

OURS: Final = ("loradock.registry.settings:Settings", "loradock.serving.settings:ServingSettings")
"""Where settings live, by name: the registry does not import serving."""


class Foreign(NamedTuple):
    """A variable that another library reads on our behalf."""

    variable: str
    meaning: str
    default: str = ""
    secret: bool = False


FOREIGN: Final = (
    Foreign("MLFLOW_TRACKING_USERNAME", "The user at the MLflow server, where it asks."),
    Foreign("MLFLOW_TRACKING_PASSWORD", "That user's password.", secret=True),
    Foreign("MLFLOW_TRACKING_TOKEN", "A bearer token, in place of user and password.", secret=True),
    Foreign("MLFLOW_TRACKING_SERVER_CERT_PATH", "The certificate that vouches for the MLflow server's."),
    Foreign("MLFLOW_HTTP_REQUEST_TIMEOUT", "Seconds until a request to the MLflow server is given up.", "30"),
    Foreign("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "How often such a request is tried again.", "2"),
    Foreign("HF_TOKEN", "The key to private models, data sets and to publishing on the Hugging Face Hub.", secret=True),
    Foreign("HF_ENDPOINT", "Another Hub.", "https://huggingface.co"),
    Foreign("HF_HOME", "Models and data sets that the Hub's client has fetched.", "~/.cache/huggingface"),
    Foreign("HF_HUB_OFFLINE", "1: nothing is fetched from the Hub."),
    Foreign("HF_HUB_DISABLE_XET", "1: files go to and from the Hub through plain HTTP."),
    Foreign("VLLM_CPU_KVCACHE_SPACE", "GiB for the key-value cache on a CPU; by default a 16th of the memory, 1 to 4."),
    Foreign("LORADOCK_DEVICE", "`cpu` or `gpu`: which build `make install` takes; by default by `nvidia-smi`."),
)


class Setting(NamedTuple):
    """One variable, what holds, and where that comes from."""

    variable: str
    value: str
    source: str
    """environment or default."""
    default: str
    meaning: str

    @property
    def markdown(self) -> str:
        """Its row in the documentation's tables: variable, meaning, default."""
        return f"| `{self.variable}` | {self.meaning.rstrip('.')} | {self.default and f'`{self.default}`'} |"


@click.command(cls=Command)
@json_option
def settings(as_json: bool) -> None:
    """Show every setting: its value, its source, its meaning.

    Example:
      loradock settings --json

    Settings come from the environment; each has a default. Keys and passwords are masked. Invalid values are
    reported at the end, with exit code 2.
    """
    rows = [row for target in OURS for row in ours(load(target), os.environ)]
    rows += [foreign(variable, os.environ) for variable in FOREIGN]
    emit([row._asdict() for row in rows], as_json, columns=("variable", "value", "source", "meaning"))
    known = [row.variable for row in rows]
    for name in sorted(os.environ):
        if name.startswith("LORADOCK_") and name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.8)
            say(f"nothing reads {name}" + (f"; {near[0]} is meant?" if near else ""))
    for target in OURS:
        load(target)()


def load(target: str) -> type[FromEnvironment]:
    """A class of settings, imported by its name."""
    module, _, name = target.partition(":")
    found: type[FromEnvironment] = getattr(importlib.import_module(module), name)
    return found


def ours(kind: type[FromEnvironment], environ: Mapping[str, str]) -> Iterator[Setting]:
    """What holds of one class; the variable's own text where the environment cannot be meant."""
    try:
        held: FromEnvironment | None = kind()
    except BadInput:
        held = None
    for (variable, field), name in zip(kind.variables().items(), kind.model_fields, strict=True):
        default = default_text(field)
        is_set = bool(environ.get(variable))
        value = environ[variable] if is_set else default
        if held is not None:
            value = text(getattr(held, name))
            if isinstance(held, Settings) and name == "tracking_uri":
                value = held.store_uri
        shown = "***" if is_set and is_secret(field) else masked(value)
        meaning = " ".join((field.description or "").split()) + _file_of(variable)
        yield Setting(variable, shown, _source(is_set), default, meaning)


def foreign(known: Foreign, environ: Mapping[str, str]) -> Setting:
    """What holds of a variable that is not ours."""
    value = environ.get(known.variable, "")
    shown = "***" if value and known.secret else masked(value or known.default)
    return Setting(known.variable, shown, _source(bool(value)), known.default, known.meaning + _file_of(known.variable))


def _file_of(variable: str) -> str:
    return f" `{variable}{secret.SUFFIX}` names a file that holds it." if variable in secret.VARIABLES else ""


def default_text(field: FieldInfo) -> str:
    """A default as the documentation has it: empty where it is nothing, or depends on the machine."""
    return "" if field.is_required() or field.default_factory else text(field.default)


def text(value: Any) -> str:
    """A setting's value as a person would write it into the environment."""
    if isinstance(value, Path):
        home = Path.home()
        return f"~/{value.relative_to(home)}" if value.is_relative_to(home) else str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def is_secret(field: FieldInfo) -> bool:
    """Whether a setting's annotation says that nobody shall read its value."""
    return "SecretStr" in str(field.annotation) or field.annotation is SecretStr


def _source(is_set: bool) -> str:
    return "environment" if is_set else "default"
