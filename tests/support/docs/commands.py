"""Commands that documents name, held against what there is, without running them.

`loradock` and `mlflow` are parsed as they would be run; of make, docker, kubectl, pip and curl it is looked up that the
targets, services, files, extras and routes are there. What is none of these has to be one of `OTHERS`.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import tomllib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import click
import yaml

from loradock.cli import cli
from loradock.cli import settings as settings_verb
from tests.support.docs.pages import ROOT

OTHERS = frozenset(
    {
        *("accelerate", "awk", "aws", "bash", "cat", "cp", "createdb", "echo", "eval", "git", "head", "hf", "kill"),
        *("mkdir", "mv", "nvidia-smi", "pg_dump", "pg_restore", "printf", "psql", "python", "ray", "rm", "rsync"),
        *("scontrol", "serve", "sleep", "source", "sqlite3", "srun", "ssh", "systemctl", "torchrun", "uv", "wait"),
    }
)
"""Programs of others, of which no more is held than that the shell can read the line."""
VARIABLES = frozenset(
    {"ARTIFACTS", "BACKUP", "DATABASE", "MAIN", "PATH", "RAY_process_group_cleanup_enabled", "RAY_worker_niceness"}
)
"""What a page sets for its own next lines, or another program reads."""
ROUTES = re.compile(r"/(v1/(chat/completions|completions|models)|loradock/(ready|status|signals|nudge)|metrics|health)")


def parsed(group: click.Group, words: Sequence[str]) -> str:
    """What click says of a command, parsed as it would be run; files need not be there."""
    name, words = words[0], list(words[1:])
    with group.make_context(name, words[:1], resilient_parsing=True) as context:
        if not words or words[0] == "--help":
            return ""
        if (command := group.get_command(context, words[0])) is None:
            return f"{words[0]} is no verb of {name}"
        if isinstance(command, click.Group):
            return parsed(command, words)
        try:
            command.make_context(words[0], words[1:], parent=context)
        except click.exceptions.Exit:  # --help
            return ""
        except click.UsageError as error:
            return "" if "does not exist" in error.message else error.message
    return ""


def loradock(words: Sequence[str]) -> str:
    return parsed(cli, ["1" if re.fullmatch(r"\$\w+", word) else word for word in words])  # a variable of the shell


def mlflow(words: Sequence[str]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says what it thinks of its own type hints
        from mlflow.cli import cli as theirs

    return parsed(theirs, words)


def make(words: Sequence[str]) -> str:
    there = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    return " ".join(word for word in words[1:] if "=" not in word and word not in there)


def export(words: Sequence[str]) -> str:
    ours = {name for target in settings_verb.OURS for name in settings_verb.load(target).variables()}
    composed = re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    known = ours | {one.variable for one in settings_verb.FOREIGN} | {*composed} | VARIABLES
    names = (word.partition("=")[0] for word in words[1:])
    return " ".join(name for name in names if name not in known and not _is_read_by_mlflow(name))


def _is_read_by_mlflow(name: str) -> bool:
    import mlflow.environment_variables

    return name in vars(mlflow.environment_variables)


def docker(words: Sequence[str]) -> str:
    if words[1] == "build":
        text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
        stages, arguments = re.findall(r" AS (\S+)", text), re.findall(r"^ARG (\w+)", text, re.MULTILINE)
        given = [word.partition("=")[0] for word in _after("--build-arg", words)]
        return _unknown([*given, *_after("--target", words)], {*stages, *arguments})
    if words[1] == "push":
        return ""
    assert words[1] == "compose", words
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    profiles = {name for service in services.values() for name in service.get("profiles", ())}
    unknown = _unknown(_after("--profile", words), profiles)
    rest = [word for word in words[2:] if not word.startswith("-") and word not in profiles]
    verb, named = rest[0], rest[1:]
    if verb in ("run", "exec"):
        unknown += _unknown(named[:1], services)
        at = list(words).index(named[0])
        if named[1:] and services.get(named[0], {}).get("image", "").startswith("localhost/loradock/"):
            unknown += loradock(["loradock", *words[at + 1 :]])
        return unknown
    return unknown + _unknown(named, services)


def kubectl(words: Sequence[str]) -> str:
    made = "secrets/"  # by stack/secrets.sh
    files = [*_after("-f", words), *(word.partition("=")[2] for word in words if word.startswith("--from-file="))]
    return " ".join(file for file in files if not file.startswith(made) and not (ROOT / file).exists())


def pip(words: Sequence[str]) -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"(?:loradock|\.)\[([\w,-]+)\]", " ".join(words))
    extras = {extra for some in named for extra in some.split(",")}
    return _unknown(sorted(extras), project["optional-dependencies"])


def curl(words: Sequence[str]) -> str:
    (url,) = (word for word in words if word.startswith("http"))
    for body in [*_after("-d", words), *_after("--data", words)]:
        json.loads(body)
    path = re.sub(r"^https?://[^/]+", "", url)
    return "" if ROUTES.match(path) else path


def script(words: Sequence[str]) -> str:
    path = ROOT / words[0]
    return "" if path.is_file() and os.access(path, os.X_OK) else f"{words[0]} is no script"


def _after(option: str, words: Sequence[str]) -> list[str]:
    return [word for before, word in itertools.pairwise(words) if before == option]


def _unknown(named: Sequence[str], known: Any) -> str:
    return " ".join(name for name in named if name not in known)


HELD: dict[str, Callable[[Sequence[str]], str]] = {
    "loradock": loradock,
    "mlflow": mlflow,
    "make": make,
    "export": export,
    "docker": docker,
    "kubectl": kubectl,
    "pip": pip,
    "curl": curl,
}


def fault(words: Sequence[str]) -> str:
    """What is wrong with a program and its words; empty where nothing is."""
    while words and re.match(r"[A-Z_]+=", words[0]):
        if said := export(["export", words[0]]):
            return f"nobody reads {said}"
        words = words[1:]
    if not words:
        return ""
    if words[0] in HELD:
        return HELD[words[0]](words)
    if "/" in words[0]:
        return script(words)
    return "" if words[0] in OTHERS else f"{words[0]} is neither run nor held against anything"
