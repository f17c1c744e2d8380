"""Turning an adapter, out of a run or out of a directory, into an immutable version, and hashing it again."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loradock.registry import artifact, check, foreign, layouts, pickled, text
from loradock.registry import base as bases
from loradock.registry.base import LocalBase
from loradock.registry.check.findings import some
from loradock.registry.errors import BadInput, DigestMismatch, LoradockError, NotFound, NotServable
from loradock.registry.records import Base, Facts, Manifest, TextSettings, Version
from loradock.registry.scratch import room, scratch
from loradock.registry.settings import Settings
from loradock.registry.store import Store, candidates
from loradock.registry.store.candidates import Candidate

log = logging.getLogger(__name__)


def register(store: Store, run_id: str, name: str, *, base: check.BaseShapes | None = None) -> Version:
    """Make a version of the adapter that a run logged; the same bytes give the same version, however often.

    Its bytes are fetched and hashed first. What rules it out for serving is kept with it as findings, and what nobody
    could look at as doubts: all that needs `base` where that is not given. Killed at any step it leaves nothing that is
    seen, and can be called again. Raises NotFound, BadInput, DigestMismatch, Taken, Unreachable, or LoradockError when
    the disk is full or a clean-up deletes these bytes.
    """
    store.usable(name)
    source, facts = store.adapter_of(run_id)
    with _downloaded(store, source, what=f"run {run_id}") as directory:
        artifact.verify(directory, facts.digest, what=f"the adapter of run {run_id}")
        found = check.judged(directory, base=base or check.BaseShapes())
    family = store.create_family(name)
    while True:
        made = candidates.same(store, name, facts.digest)
        if not made:
            candidates.offer(store, family, source, facts, *_told(found))
        elif _admitted(store, made[0], source):
            for spare in made[1:]:
                if not spare.admitted:
                    store.delete_version(spare.ref)
            return store.version(made[0].ref)


def _told(found: check.Diagnosis) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(finding.text for finding in found.blocking), tuple(finding.text for finding in found.doubts)


def own_shapes(base: Base, settings: Settings, given: str | None = None) -> check.BaseShapes:
    """The modules of the base that a version was trained on, which `given` may name; none where it is not here."""
    name = given or (f"{base.id}@{base.revision}" if base.revision else base.id)
    try:
        local = bases.resolve(name, settings, here=True)
        return check.read_shapes(local.path) if local.base.same_weights(base) else check.BaseShapes()
    except LoradockError:
        return check.BaseShapes()


def _admitted(store: Store, lowest: Candidate, source: str) -> bool:
    """Admit the lowest version of some bytes, or withdraw it when its own are not whole; those of `source` are."""
    gone = store.condemned(lowest.source)
    if gone and (lowest.admitted or lowest.source == source):
        if not lowest.admitted:
            store.delete_version(lowest.ref)
        raise LoradockError(
            f"{lowest.ref} has these bytes, and a clean-up deletes them",
            hint="let `loradock gc` finish, then register or import them again",
        )
    if lowest.admitted:
        return True
    if gone or not (lowest.source == source or _is_whole(store, lowest)):
        store.delete_version(lowest.ref)
        return False
    try:
        candidates.admit(store, lowest)
    except NotFound:  # somebody withdrew it meanwhile
        return False
    return True


def _is_whole(store: Store, candidate: Candidate) -> bool:
    try:
        with _downloaded(store, candidate.source, what=str(candidate.ref)) as directory:
            artifact.verify(directory, candidate.facts.digest, what=str(candidate.ref))
    except (NotFound, BadInput, DigestMismatch):
        return False
    return True


def describe(directory: Path, base: Base, *, run_id: str, data_digest: str, text: TextSettings | None = None) -> Facts:
    """What the registry keeps of an adapter, read from its files, whose manifest is written."""
    config = check.read_config(directory)
    tensors = artifact.read_header(directory / artifact.WEIGHTS)
    return Facts(
        digest=artifact.build_manifest(directory).digest,
        base=base,
        method=str(config.get("peft_type")).lower(),
        rank=check.largest_rank(config),
        targets=tuple(sorted({name.partition(".lora_")[0].rsplit(".", 1)[-1] for name in tensors})),
        run_id=run_id,
        data_digest=data_digest,
        text=text or TextSettings(),
    )


def import_directory(
    store: Store,
    directory: Path,
    local: LocalBase,
    name: str,
    *,
    origin: str = "",
    checkpoint: str = "",
    convert_pickle: bool = False,
) -> Version:
    """Make a version of an adapter that was trained elsewhere; it gets an MLflow run that says where it came from.

    `origin` is that place, by default the directory's name; `checkpoint` is what `layouts.find` takes. Only PEFT's two
    files are taken, and adapter_config.json in one fixed form. The same bytes give the same version.
    Raises BadInput for a directory without an adapter, Refused for a configuration or a pickle that says more than is
    understood, NotServable for tensors that do not fit the base, and what `register` raises.
    """
    store.usable(name)
    found = layouts.find(directory, checkpoint)
    if found.pickled and not convert_pickle:
        raise BadInput(
            f"{found.weights} is pickled, and a pickle can run any code when it is read",
            hint="--convert-pickle reads its tensors alone, runs nothing, and stores them as safetensors",
        )
    if found.aside:
        log.info("left aside: %s", some(found.aside, most=12))
    if unlike := text.beside(found.directory, local.path):
        log.warning(
            "warning: another %s than the base's lies beside the adapter, and is left aside;"
            " if it was trained with that, give --base a copy of the base that has it",
            " and ".join(unlike),
        )
    origin = "/".join(filter(None, (origin or directory.resolve().name, found.below)))
    with scratch() as staged:
        config = _stage(found, staged)
        shapes = check.read_shapes(local.path)
        if misfits := check.misfits(staged, shapes):
            raise NotServable(f"{found.directory} on {local.base.id}", misfits)
        if doubt := foreign.doubt(config, local):
            log.warning("warning: %s", doubt)
        facts = _described(staged, local)
        if existing := store.find_version(name, facts.digest):
            return existing
        tags = {"loradock.imported_from": origin, **foreign.claims(config)}
        with store.run(f"import {origin}", tags) as run_id, room(store.settings.artifacts):
            store.put_adapter(staged, name=name, facts=facts.model_copy(update={"run_id": run_id}))
    return register(store, run_id, name, base=shapes)


def _stage(found: layouts.Found, into: Path) -> dict[str, Any]:
    """Copy PEFT's two files as they are kept, and return what the configuration said."""
    config = check.read_config(found.directory)
    kept, dropped = foreign.cleaned(config)
    if dropped:
        log.warning("warning: adapter_config.json has keys unknown to PEFT, which are dropped: %s", some(dropped))
    (into / artifact.CONFIG).write_text(json.dumps(kept), encoding="utf-8")
    if found.pickled:
        pickled.convert(found.weights, into / artifact.WEIGHTS)
    else:
        shutil.copyfile(found.weights, into / artifact.WEIGHTS)
        artifact.read_header(into / artifact.WEIGHTS)
    return config


def _described(staged: Path, local: LocalBase) -> Facts:
    try:
        artifact.canonicalise(staged)
        artifact.write_manifest(staged)
        return describe(staged, local.base, run_id="", data_digest="", text=text.settings_of(local.path))
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadInput(f"{artifact.CONFIG} holds values that PEFT cannot mean: {error}") from error


def verify(store: Store, version: Version) -> Manifest:
    """Hash a version's stored files again; raises DigestMismatch with every one that changed, is missing or extra."""
    what, digest = str(version.ref), version.facts.digest
    try:
        with fetched(store, version) as directory:
            return artifact.verify(directory, digest, what=what)
    except (BadInput, UnicodeDecodeError) as error:
        raise DigestMismatch(what, expected=digest, found="", faults=[f"{artifact.MANIFEST} changed"]) from error
    except NotFound as error:
        raise DigestMismatch(what, expected=digest, found="", faults=["every file is missing"]) from error


@contextmanager
def fetched(store: Store, version: Version) -> Iterator[Path]:
    """A version's files in a directory that goes away at the end, not yet verified."""
    with _downloaded(store, version.source, what=str(version.ref)) as directory:
        yield directory


@contextmanager
def _downloaded(store: Store, source: str, *, what: str) -> Iterator[Path]:
    with scratch() as directory:
        store.download(source, directory, what=what)
        yield directory
