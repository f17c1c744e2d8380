"""What an adapter's values say against it: read one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from loradock.registry.artifact import TensorInfo, read_values
from loradock.registry.check.findings import Finding, some
from loradock.registry.check.matrices import tensor
from loradock.registry.check.names import TensorName
from loradock.registry.check.shapes import BaseShapes
from loradock.registry.check.tensors import EMBEDDING_WEIGHTS, Pair

_FLOATS: Final = frozenset({"BF16", "F16", "F32", "F64"})
_ROWS: Final = 4096
"""Rows of a matrix that are read at once."""


def in_copies(
    path: Path, tensors: Mapping[str, TensorInfo], names: Mapping[str, TensorName], base: BaseShapes
) -> Iterator[Finding]:
    """Copies of the base's embedding or head, which PEFT loads and vLLM passes over, that are not the base's own."""
    for name, info in tensors.items():
        if not name.endswith(EMBEDDING_WEIGHTS) or not base.config:
            continue
        module = names[name].owner
        kept = base.files.get(base.tied(module))
        if kept is None or not {info.dtype, kept[1].dtype} <= _FLOATS:
            yield Finding("copy-unread", f"{name} cannot be held against the base's own weight", unknown=True)
        elif info.shape != kept[1].shape or not _same(path, info, *kept):
            text = f"{name} is not the base's own weight, for which vLLM takes it"
            yield Finding("copy-differs", text, "merge")


def _same(path: Path, info: TensorInfo, other: Path, kept: TensorInfo) -> bool:
    """Whether one matrix is the other, rounded to its own type."""
    import numpy as np

    width = math.prod(info.shape[1:])
    for row in range(0, info.shape[0], _ROWS):
        both = []
        for file, where in ((path, info), (other, kept)):
            size = (where.stop - where.start) // where.shape[0]
            stop = min(where.start + (row + _ROWS) * size, where.stop)
            part = replace(where, shape=(_ROWS, width), start=where.start + row * size, stop=stop)
            both += [values.astype("float64") for _, values in read_values(file, {"": part})]
        with np.errstate(over="ignore"):
            rounded = [[tensor(values, kind).data for values in both] for kind in (info.dtype, kept.dtype)]
        if all(mine != theirs for mine, theirs in rounded):
            return False
    return True


def in_values(path: Path, tensors: Mapping[str, TensorInfo], found: Mapping[str, Pair]) -> Iterator[Finding]:
    """NaN, infinity, and layers whose product is nothing. Types without a reader here pass unread."""
    import numpy as np

    broken, zero = [], set()
    for name, values in read_values(path, tensors):
        peak = float(np.abs(values).max()) if values.size else 0.0
        if not np.isfinite(peak):
            broken.append(name)
        elif peak == 0.0:
            zero.add(name)
    if broken:
        holds = f"{len(broken)} tensors hold values that are no finite numbers" if len(broken) > 1 else ""
        yield Finding(
            "not-finite", f"{holds}: {some(broken)}" if holds else f"{broken[0]} holds a value that is no finite number"
        )
    idle = [pair.module for pair in found.values() if zero & {pair.a, pair.b}]
    if idle and len(idle) == len(found):
        side = (
            "B"
            if all(pair.b in zero for pair in found.values())
            else "A"
            if all(pair.a in zero for pair in found.values())
            else "A or lora_B"
        )
        yield Finding("no-effect", f"it has no effect: every lora_{side} is zero")
    elif idle:
        text = f"{len(idle)} of {len(found)} modules do nothing, for lora_A or lora_B is zero: {some(idle)}"
        yield Finding("layers-idle", text, "zero-layers", blocks=False)
