"""Whom the rows ask: from what stands in them to versions, each resolved once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from loradock.registry import promotion
from loradock.registry.base import LocalBase
from loradock.registry.errors import BadInput, LoradockError, NotFound
from loradock.registry.records import Version
from loradock.registry.refs import is_name, parse_ref
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.serving.batch.rows import Row, refuse
from loradock.serving.desired import BASE_NAME, why_refused


def refs_of(path: Path, rows: Iterable[Row], default: str, base_names: Collection[str]) -> tuple[str | None, ...]:
    """For each row the alias or version that it asks for, or None for the base; raises BadInput with every fault."""
    refs: list[str | None] = []
    faults = []
    for row in rows:
        model = row.model or default
        try:
            refs.append(None if not model or model in base_names else str(parse_ref(model)))
        except BadInput as error:
            faults.append(f"line {row.line}: {error}")
    refuse(path, faults)
    return tuple(refs)


def resolve(
    path: Path, rows: Sequence[Row], refs: Sequence[str | None], local: LocalBase, store: Store
) -> dict[str, Version]:
    """The version that each ref names now; raises BadInput with every ref that cannot answer on this base."""
    lines: dict[str, list[int]] = {}
    for row, ref in zip(rows, refs, strict=True):
        if ref is not None:
            lines.setdefault(ref, []).append(row.line)
    versions: dict[str, Version] = {}
    faults = []
    for ref, at in lines.items():
        try:
            version = versions[ref] = promotion.resolve(store, parse_ref(ref))
        except NotFound as error:
            faults.append(f"{_places(at)}: {error}")
            continue
        if reason := why_refused(version, local.base, served_as=frozenset({local.name})):
            faults.append(f"{_places(at)}: {version.ref}: {reason}")
    refuse(path, faults)
    return versions


def refuse_shared(
    path: Path, rows: Iterable[Row], default: str, base_names: Collection[str], settings: Settings
) -> None:
    """Raise BadInput where rows ask for the base by a name that an adapter has, too."""
    lines: dict[str, list[int]] = {}
    for row in rows:
        if (model := row.model or default) in base_names and is_name(model):
            lines.setdefault(model, []).append(row.line)
    if lines:
        store = Store(settings)
        shared = {name: at for name, at in lines.items() if (found := store.find_family(name)) and found.ledger}
        refuse(path, [f"{_places(at)}: {name} is an adapter, and {BASE_NAME}" for name, at in shared.items()])


def _places(lines: Sequence[int]) -> str:
    more = f" and {len(lines) - 1} more" if len(lines) > 1 else ""
    return f"line {lines[0]}{more}"


def moved(begun: Mapping[str, Version], settings: Settings) -> list[str]:
    """A line for each alias that does not stand any more where a run found it, or one that the registry is gone."""
    lines = []
    try:
        store = Store(settings)
        for ref, version in begun.items():
            try:
                now = str(promotion.resolve(store, parse_ref(ref)).ref)
            except NotFound:
                now = "nothing"
            if now != str(version.ref):
                lines.append(f"{ref} now points at {now}; this run continues with {version.ref}")
    except LoradockError as error:
        lines.append(
            f"this run continues with the versions that it started with; whether aliases have moved is unknown: {error}"
        )
    return lines
