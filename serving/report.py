"""What a replica reports of its names and versions, and what of a status a caller sees: pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from loradock.registry.refs import VersionRef
from loradock.registry.replica_status import Answering, Quarantined, Refused, ReplicaStatus, Weight
from loradock.serving.desired import Desired
from loradock.serving.keys import Caller
from loradock.serving.probe import Proof
from loradock.serving.reconcile import Observed


def parts(
    desired: Desired, observed: Observed, since: Mapping[str, datetime], proofs: Mapping[VersionRef, Proof]
) -> dict[str, Any]:
    """The fields of a status that are by name or by version."""
    return {
        "adapters": {name: _answering(name, desired, observed, since) for name in sorted(observed.pointed)},
        "cold": {
            name: version.ref
            for name, version in sorted(desired.targets.items())
            if name not in observed.pointed and version.ref not in {*observed.quarantined, *observed.loading}
        },
        "shares": {
            name: {
                alias: Weight(version=VersionRef(name, share.version), weight=share.weight)
                for alias, share in of.items()
            }
            for name, of in sorted(desired.shares.items())
        },
        "loading": tuple(sorted(observed.loading)),
        "quarantined": {
            ref: Quarantined(
                reason=held.reason,
                attempts=held.attempts,
                retry_in_seconds=round(max(0.0, held.until - observed.now), 1),
            )
            for ref, held in sorted(observed.quarantined.items())
        },
        "refused": {
            name: Refused(version=refusal.version.ref, reason=refusal.reason)
            for name, refusal in sorted(desired.refused.items())
        },
        "resident": {ref: held.in_flight for ref, held in sorted(observed.resident.items())},
        "proofs": {ref: proof.figures for ref, proof in sorted(proofs.items())},
    }


BY_NAME: Final = ("waiting", "histories", "adapters", "cold", "shares", "refused")
BY_VERSION: Final = ("unlike", "quarantined", "resident", "proofs")


def seen_by(caller: Caller, status: ReplicaStatus) -> ReplicaStatus:
    """A status as a key that is for some models only sees it: its own adapters, and nothing of the machine's paths."""

    def own(name: str) -> bool:
        return caller.may(name) or caller.may(name.partition("/")[0])

    shown: dict[str, Any] = {
        part: {of: value for of, value in getattr(status, part).items() if own(str(of))}
        for part in (*BY_NAME, *BY_VERSION)
    }
    shown["loading"] = tuple(ref for ref in status.loading if own(str(ref)))
    shown["converged"] = not shown["waiting"]
    error = "unreachable" if status.registry.error else ""
    shown["registry"] = status.registry.model_copy(update={"uri": "the registry", "error": error})
    return status.model_copy(update={**shown, "keys": None})


def _answering(name: str, desired: Desired, observed: Observed, since: Mapping[str, datetime]) -> Answering:
    ref = observed.pointed[name]
    held, target = observed.resident.get(ref), desired.targets.get(name)
    return Answering(
        version=ref,
        digest=held.version.facts.digest if held else "",
        since=since[name],
        promoted=target.ref if target else None,
    )
