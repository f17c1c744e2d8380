"""LoRA matrices as bytes of their own type, and as float64 to reckon with."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from loradock.registry.artifact import TensorInfo, floats
from loradock.registry.errors import BadInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROWS: Final = 1024
"""Rows of a product that are held at once."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def values(self) -> NDArray[Any]:
        """Its values as float64; raises BadInput for a type that has none here."""
        values = floats(self.data, self.dtype)
        if values is None:
            raise BadInput(f"a tensor is {self.dtype}, which is not supported in this computation")
        return values.astype("float64").reshape(self.shape)


def tensor(values: NDArray[Any], dtype: str) -> Tensor:
    """`values` rounded to a type: F64, F32, F16 or BF16."""
    import numpy as np

    if dtype == "BF16":  # the upper half of a float32, rounded to even
        bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
        data = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    else:
        data = np.ascontiguousarray(values, dtype={"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
    return Tensor(dtype, values.shape, data)


def read_tensors(path: Path, header: Mapping[str, TensorInfo]) -> dict[str, Tensor]:
    """Every tensor of a safetensors file."""
    found = {}
    with path.open("rb") as file:
        for name, info in header.items():
            file.seek(info.start)
            found[name] = Tensor(info.dtype, info.shape, file.read(info.stop - info.start))
    return found


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file (https://huggingface.co/docs/safetensors), with the mark that PEFT looks for."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, found in sorted(tensors.items()):
        entries[name] = {"dtype": found.dtype, "shape": found.shape, "data_offsets": [at, at + len(found.data)]}
        at += len(found.data)
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for _, found in sorted(tensors.items()):
            file.write(found.data)


def largest_difference(one: tuple[NDArray[Any], NDArray[Any]], other: tuple[NDArray[Any], NDArray[Any]]) -> float:
    """The largest absolute difference of an entry of two products B·A, each given as (B, A) of float64."""
    import numpy as np

    if all(np.array_equal(mine, theirs) for mine, theirs in zip(one, other, strict=True)):
        return 0.0
    left = np.concatenate([one[0], -other[0]], axis=1)
    right = np.concatenate([one[1], other[1]], axis=0)
    blocks = (left[at : at + _ROWS] @ right for at in range(0, len(left), _ROWS))
    return max((float(np.abs(block).max(initial=0.0)) for block in blocks), default=0.0)
