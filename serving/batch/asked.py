"""Whom the rows ask: from what stands in them to versions, each resolved once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from registry import promotion
from registry.base import LocalBase
from registry.errors import BadInput, LoradockError, NotFound
from registry.records import Version
from registry.refs import parse_ref
from registry.settings import Settings
from registry.store import Store
from serving.batch.rows import Row, refuse


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
        trained_on = version.facts.base
        if not trained_on.same_weights(local.base):
            faults.append(f"{_places(at)}: {version.ref} was trained on {trained_on.id}, not on {local.base.id}")
    refuse(path, faults)
    return versions


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
                lines.append(f"{ref} stands at {now} by now; this run goes on with {version.ref}")
    except LoradockError as error:
        lines.append(
            f"this run goes on with the versions that it began with; whether aliases moved is not known: {error}"
        )
    return lines
