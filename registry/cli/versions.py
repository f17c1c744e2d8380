"""The verbs that make versions, and hash them again: parse, call, print."""

from __future__ import annotations

import sys
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click

from loradock.registry import base as bases
from loradock.registry import card, heads, hub, promotion, recording, refs, versions
from loradock.registry import history as histories
from loradock.registry.cli.completion import complete_ref
from loradock.registry.cli.output import emit, json_option, say
from loradock.registry.cli.record import reference_option
from loradock.registry.cli.shared import base_option, row
from loradock.registry.errors import DigestMismatch, Drifted, HistoryCut, NotFound, Refused
from loradock.registry.records import Acceptance, Version
from loradock.registry.settings import Settings
from loradock.registry.store import Store


@click.command()
@click.argument("run_id")
@click.option("--name", required=True, help="The adapter to add a version to; made when there is none.")
@reference_option
@json_option
def register(run_id: str, name: str, no_reference: bool, as_json: bool) -> None:
    """Make an immutable version of a run's adapter.

    RUN_ID is an MLflow run that `loradock train` finished. Its bytes are hashed again first; the same bytes
    registered twice are one version. Then what PEFT says with it is recorded, for replicas to hold theirs against.
    """
    store, name = Store(Settings()), refs.parse_name(name)
    own = versions.own_shapes(store.adapter_of(run_id)[1].base, store.settings)
    version = versions.register(store, run_id, name, base=own)
    if not no_reference:
        recording.attempt(store, version, say)
    _report_version(store, version, as_json)


@click.command("import")
@click.argument("source", metavar="DIR|HUB-ID")
@click.option("--name", required=True, help="The adapter to add a version to; made when there is none.")
@base_option(required=True)
@click.option(
    "--checkpoint",
    default="",
    metavar="N|best|last",
    help="Which checkpoint-N/ of DIR to take; `best` is what trainer_state.json says.",
)
@click.option(
    "--convert-pickle",
    is_flag=True,
    help="Take adapter_model.bin where there is no safetensors: its tensors alone are read, and no code is run.",
)
@reference_option
@json_option
def import_(
    source: str, name: str, base: str, checkpoint: str, convert_pickle: bool, no_reference: bool, as_json: bool
) -> None:
    """Make a version of an adapter that was trained elsewhere.

    DIR is what PEFT, Axolotl, LLaMA-Factory, Unsloth or a Trainer has written; HUB-ID is ORG/NAME or
    ORG/NAME@REVISION on the Hugging Face Hub. Only adapter_config.json and the adapter's weights are taken. The
    tensors are held against the base first. Then what PEFT says with it is recorded, as `register` does.
    """
    settings, name = Settings(), refs.parse_name(name)
    directory, origin = _located(source, convert_pickle)
    local, store = bases.resolve(base, settings), Store(settings)
    version = versions.import_directory(
        store, directory, local, name, origin=origin, checkpoint=checkpoint, convert_pickle=convert_pickle
    )
    if not no_reference:
        recording.attempt(store, version, say, base)
    _report_version(store, version, as_json)


def _located(source: str, pickled: bool) -> tuple[Path, str]:
    """The directory that an adapter is in, and where it came from if that is not this machine."""
    directory = Path(source).expanduser()
    if directory.exists():
        return directory, ""
    if not bases.is_hub_id(source):
        raise NotFound(f"there is no directory {source}", hint="give a directory, or ORG/NAME on the Hub")
    say(f"there is no directory {source}; looking on the Hub")
    repository, _, revision = source.partition("@")
    directory = hub.adapter(repository, revision or None, pickled=pickled)
    return directory, f"{repository}@{directory.name}"


_MENDS: Final = "restore files from a backup; `loradock history NAME --adopt` or `--restore` settles a moved alias"


@click.command()
@click.argument("ref", required=False, shell_complete=complete_ref)
@click.option(
    "--all", "every", is_flag=True, help="REF is a name: verify every version of it; without REF, of every adapter."
)
@json_option
def verify(ref: str | None, every: bool, as_json: bool) -> None:
    """Hash a version's stored bytes again.

    They are held against its digest; a file that changed, is missing or extra is named. Its adapter's history is
    checked, too: no entry was edited, none is missing, and it goes on from what was seen of it. With --all so are
    references, evaluations, where MLflow's aliases stand, and the history back from its newest part. It exits with 3
    when anything is wrong.
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


def _report_version(store: Store, version: Version, as_json: bool) -> None:
    card.refresh(store, version.ref.name, made=version)
    for finding in version.findings:
        say(f"warning: {version.ref} cannot be served: {finding}")
    emit(row(version), as_json)
