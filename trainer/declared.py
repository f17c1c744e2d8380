"""What PEFT declares of each of its types, hyper-parameter by hyper-parameter, told without importing PEFT.

`peft_settings.json` has it for the version of PEFT that is pinned. What another version declares is read once, by
importing that, and kept under `LORADOCK_CACHE`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import operator
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, EnumType
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from loradock.registry.settings import Settings
from loradock.trainer import sealed

_logger = logging.getLogger(__name__)

SHIPPED: Final = Path(__file__).with_name("peft_settings.json")
PEFTS_OWN: Final = "a class of PEFT's"
"""In place of a type that only PEFT itself can hold a value against; `from_peft` has it."""

_NOT_A_RECIPES: Final = {
    # what PEFT reads off the model, or what only its own machinery sets
    *("token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers", "hidden_size", "total_step"),
    *("runtime_config", "megatron_config", "megatron_core", "loftq_config", "arrow_config"),
}
_PLAIN: Final[Mapping[str, Any]] = {
    kind.__name__: kind for kind in (bool, int, float, str, list, dict, tuple, set, type(None))
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One hyper-parameter of a method, as PEFT declares it."""

    name: str
    annotation: Any
    default: Any
    help: str


@functools.cache
def settings_of(peft_type: str) -> dict[str, Setting]:
    """Every hyper-parameter that a recipe can set for one of PEFT's types, by name."""
    return {name: _setting(name, *told) for kind, name, *told in _rows() if kind == peft_type}


@functools.cache
def from_peft(peft_type: str) -> dict[str, Setting]:
    """The same, out of PEFT itself, which is imported."""
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(peft_type.upper())]
    hints, left_out = typing.get_type_hints(config), not_a_recipes()
    return {
        field.name: Setting(
            field.name,
            hints[field.name] if (told := _type_told(hints[field.name])) is None else _type(told),
            None if field.default is dataclasses.MISSING else field.default,
            _help(field.metadata.get("help", "")),
        )
        for field in dataclasses.fields(config)
        if field.name not in left_out
    }


def not_a_recipes() -> set[str]:
    """The fields of PEFT's configurations that no recipe sets; PEFT is imported."""
    from peft import PeftConfig

    return {field.name for field in dataclasses.fields(PeftConfig)} | _NOT_A_RECIPES


def text() -> str:
    """What the installed PEFT declares, as JSON, with its version; PEFT is imported."""
    from peft import PeftType

    rows = [
        [kind, *_told(setting)]
        for kind in sorted(kind.value.lower() for kind in PeftType)
        for setting in from_peft(kind).values()
    ]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)  # a line for each, for whoever compares
    return f'{{"peft": "{metadata.version("peft")}", "settings": [\n{lines}\n]}}\n'


@functools.cache
def _rows() -> list[list[Any]]:
    """PEFT's type in lower case, the name, its type as JSON has it, the default and the help, of each setting."""
    shipped: dict[str, Any] = json.loads(SHIPPED.read_text(encoding="utf-8"))
    try:
        version = metadata.version("peft")
    except metadata.PackageNotFoundError:  # then it is the version that we pin which will be installed
        version = shipped["peft"]
    found: list[list[Any]] = (shipped if version == shipped["peft"] else json.loads(_kept(version)))["settings"]
    return found


def _kept(version: str) -> str:
    """What another version of PEFT declares, from the cache, where it is put when it is not there or damaged."""
    reader = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    path = Settings().cache.expanduser() / f"peft-{version}-{reader}.json"
    if (held := sealed.read(path)) is not None:
        return held
    _logger.info("reading what PEFT %s declares, which takes seconds; it is kept in %s", version, path)
    found = text()
    sealed.write(path, found)
    return found


def _help(said: str | tuple[str, ...]) -> str:
    return " ".join((said if isinstance(said, str) else " ".join(said)).split())


def _told(setting: Setting) -> tuple[str, Any, Any, str]:
    told, default = _type_told(setting.annotation), setting.default
    if isinstance(default, Enum) and told is not None:
        default = {"member": default.name}
    elif not isinstance(default, bool | int | float | str | None):
        default = str(default)
    return setting.name, told, default, setting.help


def _type_told(annotation: Any) -> Any:
    """A type as JSON; None where a class of PEFT's own is a part of it, but for enumerations of texts.

    A union's parts are sorted: `typing` gives them in the order in which another library has asked for the same ones.
    """
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return {"literal": list(parts)}
    if isinstance(annotation, type) and issubclass(annotation, str) and issubclass(annotation, Enum):
        return {"enum": annotation.__name__, "members": {member.name: member.value for member in annotation}}
    if origin is None:
        return annotation.__name__ if annotation in _PLAIN.values() else None
    told = [_type_told(part) for part in parts]
    kind = "union" if origin in (typing.Union, types.UnionType) else origin.__name__
    if None in told or kind not in ("union", *_PLAIN):
        return None
    return {kind: sorted(told, key=lambda part: (part == "NoneType", str(part))) if kind == "union" else told}


def _type(told: Any) -> Any:
    """The type that `_type_told` made JSON of."""
    if isinstance(told, str):
        return _PLAIN[told]
    if "enum" in told:
        return Enum(told["enum"], told["members"], type=str)
    ((kind, parts),) = told.items()
    if kind == "literal":
        return typing.Literal[tuple(parts)]
    inner = tuple(_type(part) for part in parts)
    return functools.reduce(operator.or_, inner) if kind == "union" else _PLAIN[kind][inner]


def _setting(name: str, told: Any, default: Any, said: str) -> Setting:
    if told is None:
        return Setting(name, PEFTS_OWN, default, said)
    annotation = _type(told)
    if isinstance(default, dict):
        kinds = (part for part in (annotation, *typing.get_args(annotation)) if isinstance(part, EnumType))
        default = next(kinds)[default["member"]]
    return Setting(name, annotation, default, said)
