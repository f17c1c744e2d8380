"""What a replica says of itself, as JSON has it: pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from loradock.registry.refs import VersionRef
from loradock.serving.desired import Desired
from loradock.serving.keys import Caller
from loradock.serving.probe import Proof
from loradock.serving.reconcile import Observed


def page(
    desired: Desired, observed: Observed, since: Mapping[str, datetime], proofs: Mapping[VersionRef, Proof]
) -> dict[str, Any]:
    """Names, versions and what holds them back."""
    return {
        "adapters": {name: _name(name, desired, observed, since) for name in sorted(observed.pointed)},
        "cold": {
            name: str(version.ref)
            for name, version in sorted(desired.targets.items())
            if name not in observed.pointed and version.ref not in {*observed.quarantined, *observed.loading}
        },
        "shares": {
            name: {alias: {"version": f"{name}/{share.version}", "weight": share.weight} for alias, share in of.items()}
            for name, of in sorted(desired.shares.items())
        },
        "loading": sorted(map(str, observed.loading)),
        "quarantined": {
            str(ref): {
                "reason": held.reason,
                "attempts": held.attempts,
                "retry_in_seconds": round(max(0.0, held.until - observed.now), 1),
            }
            for ref, held in sorted(observed.quarantined.items())
        },
        "refused": {
            name: {"version": str(refusal.version.ref), "reason": refusal.reason}
            for name, refusal in sorted(desired.refused.items())
        },
        "resident": {str(ref): held.in_flight for ref, held in sorted(observed.resident.items())},
        "proofs": {str(ref): dict(proof.figures) for ref, proof in sorted(proofs.items())},
    }


_OF_ALL: Final = frozenset({"base", "ready", "stopping", "capacity", "slots", "max_rank", "aliases"})
"""What of a page tells of no single adapter; all else is objects by name or version, or lists of them."""


def seen_by(caller: Caller, page: Mapping[str, Any]) -> dict[str, Any]:
    """A page as a key that is for some models only sees it: its own adapters, and nothing of the machine's paths."""

    def own(name: str) -> bool:
        return caller.may(name) or caller.may(name.partition("/")[0])

    shown = {part: told for part, told in page.items() if part in _OF_ALL}
    for part in page.keys() - _OF_ALL - {"registry", "converged", "keys"}:
        told = page[part]
        shown[part] = list(filter(own, told)) if isinstance(told, list) else {k: v for k, v in told.items() if own(k)}
    shown["registry"] = {
        **page["registry"],
        "uri": "the registry",
        "error": "out of reach" if page["registry"]["error"] else "",
    }
    shown["converged"] = not shown["waiting"]
    return shown


def _name(name: str, desired: Desired, observed: Observed, since: Mapping[str, datetime]) -> dict[str, Any]:
    ref = observed.pointed[name]
    held, target = observed.resident.get(ref), desired.targets.get(name)
    return {
        "version": str(ref),
        "digest": held.version.facts.digest if held else "",
        "since": since[name].isoformat(timespec="milliseconds"),
        "promoted": str(target.ref) if target else None,
    }
