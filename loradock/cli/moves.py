"""What the verbs that move an alias print."""

from __future__ import annotations

from typing import Any

from loradock.cli.output import emit
from loradock.cli.rows import moment
from loradock.registry.records import Move, Traffic


def report(move: Move | None, name: str, as_json: bool, given: Traffic | None = None) -> None:
    """Print a move, and the share that goes with it."""
    if move is None and given is None:
        if as_json:
            emit({}, as_json)
        return
    row: dict[str, Any] = {}
    if move:
        before = f"{name}/{move.from_version}" if move.from_version else None
        row = {"alias": str(move.ref_in(name)), "from": before, "to": f"{name}/{move.to_version}"}
        row |= {"digest": move.digest, "at": moment(move.at), "actor": move.actor}
    if given:
        weight = {"alias": f"{name}@{given.alias}", "to": f"{name}/{given.version}", "weight": given.weight}
        row = weight | {"at": moment(given.at), "actor": given.actor} | row
    emit(row, as_json)
