"""An adapter as files: its manifest, its digest, and what its safetensors headers say."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from registry import patterns
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
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST)
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
    if path.read_bytes() != found.canonical().encode():
        raise DigestMismatch(what, expected=digest, found=found.digest, faults=[f"{MANIFEST} changed"])
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
    """Rewrite adapter_config.json, which lies beside its weights, in one fixed form that means the same.

    PEFT writes its sets in an order that changes from run to run, and takes the first key of a pattern that matches.
    """
    path = directory / CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("target_modules", "modules_to_save", "exclude_modules"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    found = patterns.settled(config, patterns.modules_of(config, read_header(directory / WEIGHTS)))
    kept = {key: found[key] for key in patterns.RULES.get(str(found.get("peft_type")), {}) if key in found}
    ordered = json.loads(json.dumps(config, sort_keys=True)) | kept
    path.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")


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

    Format: https://huggingface.co/docs/safetensors (8 bytes length, little endian, then JSON, then data that the
    tensors cover without a gap and without an overlap).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER + 1
        if length > min(_MAX_HEADER, size - 8):
            raise BadInput(f"{path.name} is not a safetensors file, or it was cut off")
        try:
            header: dict[str, Any] = json.loads(file.read(length), object_pairs_hook=_once)
            tensors = {
                name: TensorInfo(
                    entry["dtype"], tuple(entry["shape"]), *(8 + length + offset for offset in entry["data_offsets"])
                )
                for name, entry in header.items()
                if name != "__metadata__"
            }
            faults = list(_layout_faults(tensors, 8 + length, size))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadInput(f"{path.name} has a damaged safetensors header") from error
    if faults:
        raise BadInput(f"{path.name} has a damaged safetensors header: {faults[0]}")
    return tensors


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _layout_faults(tensors: Mapping[str, TensorInfo], start: int, size: int) -> Iterator[str]:
    """What of dtypes, shapes and offsets cannot be; the offsets count from the file's first byte."""
    at = start
    for full, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        name = full[:100]
        if any(type(number) is not int or number < 0 for number in (*info.shape, info.start, info.stop)):
            yield f"{name!r} has a shape or an offset that is no number"
        bits = _BITS.get(info.dtype)
        if bits is None:
            yield f"{name!r} has the unknown dtype {info.dtype!r}"
        elif (info.stop - info.start) * 8 != bits * math.prod(info.shape):
            yield f"{name!r} of {info.dtype} {info.shape} takes {info.stop - info.start} bytes"
        if info.start != at:
            yield f"{name!r} {'overlaps the tensor' if info.start < at else 'leaves a gap to the one'} before it"
        at = info.stop
    if at != size:
        yield f"it tells of {at} bytes where the file holds {size}"


_BITS: Final = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
_NUMPY: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def floats(data: bytes, dtype: str) -> NDArray[Any] | None:
    """The values of a tensor's bytes, flat; None for other than floating types of 16 bits and more."""
    import numpy as np

    if (kind := _NUMPY.get(dtype)) is None:
        return None
    values = np.frombuffer(data, dtype=kind)
    return (values.astype("<u4") << 16).view("<f4") if dtype == "BF16" else values  # the upper half of a float32


def read_values(path: Path, tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Each tensor's values, flat, one tensor in memory at a time; tensors of other than floating types are left out."""
    with path.open("rb") as file:
        for name, info in tensors.items():
            file.seek(info.start)
            if info.dtype in _NUMPY and (values := floats(file.read(info.stop - info.start), info.dtype)) is not None:
                yield name, values
