"""An adapter as files: its manifest, its digest, and what its safetensors headers say."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from registry.errors import BadInput, DigestMismatch
from registry.records import FileEntry, Manifest

if TYPE_CHECKING:
    from numpy.typing import NDArray

MANIFEST: Final = "manifest.json"
"""The manifest's file name; it is uploaded last, and lists every other file."""
CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"

_MAX_HEADER = 100 * 1024 * 1024  # bytes; safetensors' own limit


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_manifest(directory: Path) -> Manifest:
    """The manifest of every file under `directory`, but for the manifest itself."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST)
    return Manifest(
        files=tuple(
            FileEntry(path=path.relative_to(directory).as_posix(), size=path.stat().st_size, sha256=sha256_of(path))
            for path in files
        )
    )


def write_manifest(directory: Path) -> Manifest:
    """Build the manifest of `directory` and write it there."""
    manifest = build_manifest(directory)
    (directory / MANIFEST).write_text(manifest.canonical(), encoding="utf-8")
    return manifest


def parse_manifest(text: str, *, what: str) -> Manifest:
    """A manifest from its text; raises BadInput for a path that leads out of the adapter's directory."""
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise BadInput(f"{what} has no readable {MANIFEST}: {error.errors()[0]['msg']}") from error
    for entry in manifest.files:
        path = PurePosixPath(entry.path)
        if path.is_absolute() or ".." in path.parts or "\\" in entry.path or not path.parts:
            raise BadInput(f"{what} names a file outside its own directory: {entry.path!r}")
    return manifest


def verify(directory: Path, digest: str, *, what: str) -> Manifest:
    """Hash every file again and hold it against `digest`; raises DigestMismatch with each fault it finds."""
    path = directory / MANIFEST
    if not path.is_file():
        raise DigestMismatch(what, expected=digest, found="", faults=[f"{MANIFEST} is missing"])
    manifest = parse_manifest(path.read_text(encoding="utf-8"), what=what)
    found = build_manifest(directory)
    if found.digest != digest:
        raise DigestMismatch(what, expected=digest, found=found.digest, faults=_differences(manifest, found))
    return found


def _differences(expected: Manifest, found: Manifest) -> list[str]:
    wanted = {entry.path: entry for entry in expected.files}
    there = {entry.path: entry for entry in found.files}
    return [
        *(f"{path} is missing" for path in sorted(wanted.keys() - there.keys())),
        *(f"{path} is extra" for path in sorted(there.keys() - wanted.keys())),
        *(f"{path} changed" for path in sorted(wanted.keys() & there.keys()) if wanted[path] != there[path]),
    ] or ["its manifest is another one"]


def canonicalise(directory: Path) -> None:
    """Rewrite adapter_config.json in one fixed form: PEFT writes its sets in an order that changes from run to run."""
    path = directory / CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("target_modules", "modules_to_save", "exclude_modules"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as a safetensors header tells it."""

    dtype: str
    shape: tuple[int, ...]
    start: int = field(default=0, compare=False)
    """Where its bytes begin in the file."""
    stop: int = field(default=0, compare=False)


def read_header(path: Path) -> Mapping[str, TensorInfo]:
    """Names, dtypes and shapes from a safetensors header, without reading a weight; raises BadInput when damaged.

    Format: https://huggingface.co/docs/safetensors (8 bytes length, little endian, then JSON, then data).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER + 1
        if length > min(_MAX_HEADER, size - 8):
            raise BadInput(f"{path.name} is not a safetensors file, or it was cut off")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            tensors = {
                name: TensorInfo(
                    entry["dtype"], tuple(entry["shape"]), *(8 + length + offset for offset in entry["data_offsets"])
                )
                for name, entry in header.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{path.name} has a damaged safetensors header") from error
    end = max((info.stop for info in tensors.values()), default=8 + length)
    if end != size:
        raise BadInput(f"{path.name} holds {size} bytes where its header tells of {end}")
    return tensors


_NUMPY: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def read_values(path: Path, tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Each tensor's values, flat, one tensor in memory at a time; tensors of other than floating types are left out."""
    import numpy as np

    with path.open("rb") as file:
        for name, info in tensors.items():
            if kind := _NUMPY.get(info.dtype):
                file.seek(info.start)
                values = np.frombuffer(file.read(info.stop - info.start), dtype=kind)
                if info.dtype == "BF16":  # the upper half of a float32
                    values = (values.astype("<u4") << 16).view("<f4")
                yield name, values
