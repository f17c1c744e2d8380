"""The `verify` verb: parse, call, print."""

from __future__ import annotations

import sys
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from typing import Any, Final

import click

from loradock.cli.command import Command
from loradock.cli.completion import complete_ref
from loradock.cli.options import json_option
from loradock.cli.output import emit
from loradock.registry import heads, promotion, refs, versions
from loradock.registry import history as histories
from loradock.registry.errors import DigestMismatch, Drifted, HistoryCut, Refused
from loradock.registry.output import say
from loradock.registry.records import Acceptance, Version
from loradock.registry.settings import Settings
from loradock.registry.store import Store

_MENDS: Final = "restore files from a backup; `loradock history NAME --adopt` or `--restore` settles a moved alias"


@click.command(cls=Command)
@click.argument("ref", required=False, shell_complete=complete_ref)
@click.option(
    "--all", "every", is_flag=True, help="REF is a name: verify every version of it; without REF, of every adapter."
)
@json_option
def verify(ref: str | None, every: bool, as_json: bool) -> None:
    """Hash a version's stored bytes again.

    Example:
      loradock verify support-bot --all

    The files are compared with the digest; one that changed, is missing or extra is named. The adapter's history is
    checked too: no entry was edited, none is missing, and it continues what was seen before. --all also checks
    references, evaluations, MLflow's aliases, and the history from its first entry. The exit code is 3 when
    anything is wrong.
    """
    if not (ref or every):
        raise click.UsageError("say which: NAME/3, NAME@ALIAS, NAME --all, or --all")
    store = Store(Settings())
    if every:
        families = [store.family(refs.parse_name(ref))] if ref else store.families()
        _verify_all(store, [family.name for family in families], as_json)
        return
    version = promotion.resolve(store, refs.parse_ref(ref or ""))
    moves = heads.current(store, version.ref.name).moves
    manifest = versions.verify(store, version)
    found = {"version": str(version.ref), "digest": manifest.digest, "files": len(manifest.files), "moves": len(moves)}
    emit(found, as_json)


def _verify_all(store: Store, names: Sequence[str], as_json: bool) -> None:
    problems = [fault for name in names for fault in _faults_of_history(store, name)]
    every = tuple(version for name in names for version in store.versions(name))
    problems += _astray(store, names, {version.ref for version in every})
    rows = [_verified(store, version) for version in _with_progress(every)]
    problems += [f"{row['version']}: {fault}" for row in rows for fault in row["faults"]]
    emit(rows, as_json, columns=("version", "digest", "faults"))
    bad = sum(bool(row["faults"]) for row in rows)
    what = names[0] if len(names) == 1 else f"{len(names)} adapters"
    say(f"{len(rows) - bad} of {len(rows)} versions of {what} hold the bytes that were registered")
    if problems:
        refused = Refused(f"{what}: not what was registered", hint=_MENDS)
        refused.problems = tuple(problems)
        raise refused


def _faults_of_history(store: Store, name: str) -> list[str]:
    try:
        end = histories.read(store, name, whole=False)  # first, so that what is written meanwhile is in the whole only
        past = histories.read(store, name)
    except Refused as error:
        return [str(error)]
    faults = [str(Drifted(name, drift.alias, recorded=drift.recorded, found=drift.found)) for drift in past.drifts]
    faults += [f"the history of {name} is damaged: {fault}" for fault in histories.unlike(end, past)]
    try:
        heads.checked(store, past)
    except HistoryCut as error:
        faults.append(str(error))
    if past.family.ledger and (command := store.binned(past.family)):
        return [*faults, f"the experiment of its history is deleted, and `mlflow gc` would purge it: {command}"]
    for run in store.deleted(past.family) if past.family.ledger else ():
        told = f"run {run} of its history is deleted, and `mlflow gc` would purge it"
        faults.append(f"{told}: mlflow runs restore --run-id {run}")
    accepted = " ".join(lack for entry in past.entries if isinstance(entry, Acceptance) for lack in entry.lacks)
    for run in store.strays(past.family) if past.family.ledger else ():
        if run in accepted:
            continue
        told = f"run {run} has entries of a history of {name}, and nothing leads to it"
        faults.append(f"{told}: delete it in MLflow if it is that of an adapter that was deleted there")
    return faults


def _astray(store: Store, names: Collection[str], known: Container[refs.VersionRef]) -> Iterator[str]:
    """Aliases at a version that loradock did not register, or whose tags somebody took away."""
    for name in names:
        for alias, number in store.family(name).aliases.items():
            if (ref := refs.VersionRef(name, number)) not in known:
                yield f"{name}@{alias} is at {ref}, and MLflow has no such version, or not the tags of its registration"


def _verified(store: Store, version: Version) -> dict[str, Any]:
    faults: list[str] = []
    digest, base = version.facts.digest, version.facts.base
    try:
        versions.verify(store, version)
    except DigestMismatch as error:
        faults += error.faults
    for look in (lambda: store.find_reference(digest, base), lambda: store.find_evidence(version.ref.name, digest)):
        try:
            look()
        except DigestMismatch as error:
            faults.append(str(error))
    return {"version": str(version.ref), "digest": digest, "faults": faults}


def _with_progress(found: tuple[Version, ...]) -> Iterable[Version]:
    from rich.console import Console
    from rich.progress import track

    watched = sys.stderr.isatty()
    return track(found, "verifying", console=Console(stderr=True), transient=True, disable=not watched)
