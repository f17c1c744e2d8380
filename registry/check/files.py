"""What the files of an adapter's directory say against it, by their names: none of them is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from loradock.registry import artifact
from loradock.registry.check.findings import Finding, some
from loradock.registry.errors import BadInput, DigestMismatch

_PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_SHARD = re.compile(r"adapter_model-\d+-of-\d+\.safetensors")
_HUB_BLOB = re.compile(r"(\.\./)+blobs/[0-9a-f]{40,64}")
"""Where the Hub's cache keeps what a snapshot's links lead to."""


def in_files(directory: Path) -> Iterator[Finding]:
    """Missing files, pickles, and links that lead out."""
    present = sorted(path for path in directory.rglob("*") if not path.is_dir())
    names = [path.relative_to(directory).as_posix() for path in present]
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if not (directory / artifact.CONFIG).is_file():
        if (directory / "config.json").is_file():
            yield Finding("whole-model", "it is a whole model, which is served as a base and takes no alias")
            return
        yield Finding("no-config", f"it has no {artifact.CONFIG}")
    if not (directory / artifact.WEIGHTS).is_file():
        yield _without_weights(names, pickles)
    elif pickles:
        text = f"pickles lie beside its weights, and are not loaded: {some(pickles)}"
        yield Finding("pickles-beside", text, "files", blocks=False)
    out = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if _leads_out(path, directory)]
    if out:
        yield Finding("link-leads-out", f"links lead out of its directory: {some(sorted(out))}")


def _leads_out(path: Path, directory: Path) -> bool:
    if not path.is_symlink() or _HUB_BLOB.fullmatch(str(path.readlink())):
        return False
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory))


def _without_weights(names: list[str], pickles: list[str]) -> Finding:
    wanted = f"it has no {artifact.WEIGHTS}"
    if [name for name in pickles if name.startswith("adapter_model.")]:
        return Finding("weights-pickled", f"{wanted}: pickled weights are not loaded ({some(pickles)})")
    if shards := [name for name in names if _SHARD.fullmatch(name)]:
        return Finding("weights-sharded", f"{wanted}: it lies in {len(shards)} pieces, which vLLM does not read")
    others = [name for name in names if name.endswith((".safetensors", ".gguf"))]
    return Finding("weights-missing", wanted + (f", but {some(others)}" if others else ""))


def in_manifest(directory: Path) -> Iterator[Finding]:
    """A manifest that leads out, that is none, or that the files have left behind."""
    path = directory / artifact.MANIFEST
    if not path.is_file():
        return
    try:
        digest = artifact.parse_manifest(path.read_text(encoding="utf-8"), what="it").digest
        artifact.verify(directory, digest, what="it")
    except DigestMismatch as error:
        yield Finding("manifest-broken", f"its files are not those of its {artifact.MANIFEST}: {some(error.faults)}")
    except (BadInput, UnicodeDecodeError) as error:
        outside = "outside" in str(error)
        code = "manifest-leads-out" if outside else "manifest-foreign"
        yield Finding(code, str(error).splitlines()[0], "" if outside else "files", blocks=outside)
