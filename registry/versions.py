"""Turning an adapter, out of a run or out of a directory, into an immutable version."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from registry import artifact, check
from registry.base import LocalBase
from registry.errors import BadInput, NotFound, NotServable
from registry.records import Base, Facts, Version
from registry.store import Store


def register(store: Store, run_id: str, name: str) -> Version:
    """Make a version of the adapter that a run logged; the same bytes give the same version, however often.

    Its bytes are fetched and hashed first. What rules it out for serving is kept with it as findings.
    Raises NotFound, BadInput, DigestMismatch, Conflict or Unreachable.
    """
    source, facts = store.adapter_of(run_id)
    with _downloaded(store, source, what=f"run {run_id}") as directory:
        artifact.verify(directory, facts.digest, what=f"the adapter of run {run_id}")
        found = tuple(check.findings(directory))
    store.create_family(name)
    if existing := store.find_version(name, facts.digest):
        return existing
    made = store.create_version(name, source, facts, found)
    # MLflow makes two versions of a request that was sent twice; the lowest is the one.
    return store.find_version(name, facts.digest) or made


def describe(directory: Path, base: Base, *, run_id: str, data_digest: str) -> Facts:
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
    )


def import_directory(store: Store, directory: Path, local: LocalBase, name: str) -> Version:
    """Make a version of an adapter that was trained elsewhere; it gets an MLflow run that says where it came from.

    Only PEFT's two files are taken, and adapter_config.json in one fixed form. The same bytes give the same version.
    Raises BadInput for a directory without an adapter, NotServable for one whose tensors do not fit the base.
    """
    _find_adapter(directory)
    with tempfile.TemporaryDirectory(prefix="loradock-") as name_:
        scratch = Path(name_)
        for file in (artifact.CONFIG, artifact.WEIGHTS):
            shutil.copyfile(directory / file, scratch / file)
        artifact.canonicalise(scratch)
        manifest = artifact.write_manifest(scratch)
        if misfits := check.misfits(scratch, local.config):
            raise NotServable(f"{directory} on {local.base.id}", misfits)
        if store.find_family(name) and (existing := store.find_version(name, manifest.digest)):
            return existing
        with store.run(f"import {directory.name}", {"loradock.imported_from": directory.name}) as run_id:
            store.put_adapter(scratch, name=name, facts=describe(scratch, local.base, run_id=run_id, data_digest=""))
    return register(store, run_id, name)


def _find_adapter(directory: Path) -> None:
    if not directory.is_dir():
        raise NotFound(f"there is no directory {directory}")
    if (directory / artifact.CONFIG).is_file() and (directory / artifact.WEIGHTS).is_file():
        check.read_config(directory)
        artifact.read_header(directory / artifact.WEIGHTS)
        return
    if pickled := sorted(path.name for path in directory.glob("adapter_model.*") if path.suffix in (".bin", ".pt")):
        raise BadInput(
            f"{directory} holds pickled weights ({', '.join(pickled)}), which can run any code when they are read",
            hint="where you trust them, load them with PEFT and save_pretrained(..., safe_serialization=True)",
        )
    below = sorted(path.parent.relative_to(directory).as_posix() for path in directory.glob(f"*/{artifact.CONFIG}"))
    raise BadInput(
        f"{directory} holds no {artifact.CONFIG} with {artifact.WEIGHTS}",
        hint=f"these below it do: {', '.join(below)}"
        if below
        else "give the directory that PEFT's save_pretrained wrote",
    )


@contextmanager
def fetched(store: Store, version: Version) -> Iterator[Path]:
    """A version's files in a directory that goes away at the end, not yet verified."""
    with _downloaded(store, version.source, what=str(version.ref)) as directory:
        yield directory


@contextmanager
def _downloaded(store: Store, source: str, *, what: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="loradock-") as scratch:
        store.download(source, Path(scratch), what=what)
        yield Path(scratch)
