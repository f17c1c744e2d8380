"""What adapter_config.json of an adapter that was trained elsewhere says, and what of it is kept."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final

from loradock.registry import unread
from loradock.registry.base import LocalBase
from loradock.registry.check.config import IDLE
from loradock.registry.check.findings import some
from loradock.registry.errors import Refused
from loradock.registry.outside import quoted

_COPY = re.compile(r"(-unsloth)?-(bnb-)?(4bit|8bit|int4|int8)$")
"""How the names of quantised copies of a base end."""
_TAKE_IT_OUT: Final = "if it changes nothing, take it out of adapter_config.json; else it takes the PEFT that wrote it"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LONGEST: Final = 500  # characters of a claim that are kept


def cleaned(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A configuration without the keys that this PEFT does not know, and those keys.

    PEFT and vLLM pass over such a key. One that is off, or that is known to say nothing, is dropped; any other could
    change what the adapter does, and raises Refused.
    """
    method = str(config.get("peft_type"))
    if method in unread.METHODS:
        raise Refused(f"its method is {method}, which PEFT no longer has", hint=unread.METHODS[method])
    known = _known().get(method)
    if known is None:
        return dict(config), ()
    unknown = sorted(config.keys() - known)
    if telling := [f"{key}: {quoted(config[key])}" for key in unknown if key not in IDLE and config[key]]:
        raise Refused(
            f"its adapter_config.json has what PEFT does not know, and would leave out: {some(telling)}",
            hint=next((unread.KEYS[key] for key in unknown if key in unread.KEYS), _TAKE_IT_OUT),
        )
    return {key: value for key, value in config.items() if key in known}, tuple(unknown)


@cache
def _known() -> Mapping[str, frozenset[str]]:
    """The keys of each method's configuration, as PEFT has them."""
    found = json.loads(files("loradock.registry").joinpath("peft_keys.json").read_text(encoding="utf-8"))
    shared = found.pop("")
    return {method: frozenset((*shared, *keys)) for method, keys in found.items()}


def claims(config: Mapping[str, Any]) -> dict[str, str]:
    """The base that the adapter says it was trained on, as tags for its run."""
    said = {"base": config.get("base_model_name_or_path"), "revision": config.get("revision")}
    return {f"loradock.claimed_{key}": str(value)[:_LONGEST] for key, value in said.items() if value}


def doubt(config: Mapping[str, Any], local: LocalBase) -> str:
    """Why the base that was given may not be the one that the adapter was trained on; empty without such a reason."""
    said, revision = str(config.get("base_model_name_or_path") or ""), str(config.get("revision") or "")
    given = local.base
    if said and _plain(said) not in {_plain(name) for name in (given.id, local.name, local.path.name)}:
        return f"it says that it was trained on {quoted(said)}, and is taken as trained on {given.id}"
    if _COMMIT.fullmatch(revision) and given.revision and revision != given.revision:
        return f"it says that it was trained on revision {revision}, and is taken as trained on {given.revision}"
    return ""


def _plain(name: str) -> str:
    """A base's name without its owner or directory, and without what tells a quantised copy."""
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower()
    return _COPY.sub("", last)
