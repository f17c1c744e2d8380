"""An adapter as files: its manifest, its digest, and what its safetensors headers say."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from loradock.registry import patterns
from loradock.registry.errors import BadInput, DigestMismatch
from loradock.registry.outside import inside, printable, quoted
from loradock.registry.records import FileEntry, Manifest

if TYPE_CHECKING:
    from numpy.typing import NDArray

MANIFEST: Final = "manifest.json"
"""The manifest's file name; it is uploaded last, and lists every other file."""
CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"

_MOST_HEADER: Final = 32 * 2**20  # bytes; an adapter of each expert of the largest models has 15
_MOST_TENSORS: Final = 200_000
_MOST_DIMENSIONS: Final = 64  # NumPy's own limit
_MOST_BYTES: Final = 2**63  # of a tensor's sizes and offsets, each


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
        inside(Path(), entry.path, what=what)
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


def read_header(path: Path, *, any_dtype: bool = False) -> Mapping[str, TensorInfo]:
    """Names, dtypes and shapes from a safetensors header, without reading a weight; raises BadInput when damaged.

    Format: https://huggingface.co/docs/safetensors (8 bytes length, little endian, then JSON, then data that the
    tensors cover without a gap and without an overlap). A base's weights may have any dtype, an adapter's a known one.
    """
    return parse_header(path, header_of(path), any_dtype=any_dtype)


def header_of(path: Path) -> bytes:
    """A safetensors header as it stands in the file; raises BadInput where there is none, or one beyond the limits."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > size - 8:
            raise BadInput(f"{printable(path.name)} is not a safetensors file, or it was cut off")
        if length > _MOST_HEADER:
            raise BadInput(f"{printable(path.name)} has a header of {length} bytes, and {_MOST_HEADER} are read")
        return file.read(length)


def parse_header(path: Path, text: bytes, *, any_dtype: bool = False) -> Mapping[str, TensorInfo]:
    """What `read_header` gives, from the header that `header_of` gave."""
    start = 8 + len(text)
    try:
        header: dict[str, Any] = json.loads(text, object_pairs_hook=_once)
        if len(header) > _MOST_TENSORS:
            raise BadInput(f"{printable(path.name)} has {len(header)} tensors, and {_MOST_TENSORS} are read")
        tensors = {
            name: TensorInfo(
                entry["dtype"], tuple(entry["shape"]), *(start + offset for offset in entry["data_offsets"])
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
        fault = next(_layout_faults(tensors, start, path.stat().st_size, any_dtype=any_dtype), None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{printable(path.name)} has a damaged safetensors header") from error
    if fault:
        raise BadInput(f"{printable(path.name)} has a damaged safetensors header: {fault}")
    return tensors


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _layout_faults(tensors: Mapping[str, TensorInfo], start: int, size: int, *, any_dtype: bool) -> Iterator[str]:
    """What of dtypes, shapes and offsets cannot be; the offsets count from the file's first byte."""
    at = start
    for full, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        name = quoted(full)
        if len(info.shape) > _MOST_DIMENSIONS:
            yield f"{name} has {len(info.shape)} dimensions, and {_MOST_DIMENSIONS} are read"
        if any(
            type(number) is not int or not 0 <= number < _MOST_BYTES for number in (*info.shape, info.start, info.stop)
        ):
            yield f"{name} has a shape or an offset that is no number, or too large a one"
        bits = _BITS.get(info.dtype)
        if bits is None and not (any_dtype and isinstance(info.dtype, str)):
            yield f"{name} has the unknown dtype {quoted(info.dtype)}"
        elif bits is not None and (info.stop - info.start) * 8 != bits * math.prod(info.shape):
            yield f"{name} of {info.dtype} {quoted(info.shape)} takes {info.stop - info.start} bytes"
        if info.start != at:
            yield f"{name} {'overlaps the tensor' if info.start < at else 'leaves a gap to the one'} before it"
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
