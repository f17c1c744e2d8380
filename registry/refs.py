"""How adapters, versions and aliases are written: `name`, `name/3`, `name@production`, as MLflow writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from loradock.registry.errors import BadInput

PRODUCTION: Final = "production"
"""The alias that a bare adapter name stands for on the endpoint."""
CANARY: Final = "canary"
"""The alias whose version answers a share of a bare name's requests."""
SHADOW: Final = "shadow"
"""The alias whose version gets a copy of a share of a bare name's requests, and answers nobody."""

_NAME = re.compile(r"(?!m-)[a-z0-9][a-z0-9._-]{0,62}")
_ALIAS = re.compile(r"(?!latest$)(?!v[0-9]+$)[a-z][a-z0-9-]{0,30}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_RESERVED_NAMES = frozenset({"text", "image"})  # vLLM gives these two request names a meaning of its own


@dataclass(frozen=True, slots=True, order=True)
class VersionRef:
    """One immutable version of an adapter: `support-bot/3`."""

    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name}/{self.number}"


@dataclass(frozen=True, slots=True, order=True)
class AliasRef:
    """A moving name of an adapter: `support-bot@production`."""

    name: str
    alias: str

    def __str__(self) -> str:
        return f"{self.name}@{self.alias}"


def is_name(text: str) -> bool:
    """Whether an adapter can be called so."""
    return bool(_NAME.fullmatch(text)) and ".." not in text and text not in _RESERVED_NAMES


def parse_name(text: str) -> str:
    """An adapter's name; raises BadInput for anything that MLflow, vLLM or a path could take otherwise."""
    if not is_name(text):
        raise BadInput(
            f"{text!r} is not an adapter name",
            hint="use 1 to 63 of a-z 0-9 . _ -, beginning with a letter or digit and not with `m-`",
        )
    return text


def parse_alias(text: str) -> str:
    """An alias; raises BadInput."""
    if not _ALIAS.fullmatch(text):
        raise BadInput(
            f"{text!r} is not an alias",
            hint="use 1 to 31 of a-z 0-9 -, beginning with a letter; `latest` and `v1`, `v2`, ... are MLflow's own",
        )
    return text


def parse_version(text: str) -> VersionRef:
    """`name/3`; raises BadInput."""
    name, slash, number = text.partition("/")
    if not slash or not _VERSION.fullmatch(number):
        raise BadInput(f"{text!r} is not a version", hint="write it as NAME/NUMBER, for example support-bot/3")
    return VersionRef(parse_name(name), int(number))


def parse_ref(text: str) -> VersionRef | AliasRef:
    """`name/3`, `name@alias`, or a bare `name`, which means `name@production`; raises BadInput."""
    if "/" in text:
        return parse_version(text)
    name, at, alias = text.partition("@")
    return AliasRef(parse_name(name), parse_alias(alias) if at else PRODUCTION)
