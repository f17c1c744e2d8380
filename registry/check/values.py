"""What an adapter's values say against it: read one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from registry.artifact import TensorInfo, read_values
from registry.check.findings import Finding, some
from registry.check.tensors import Pair


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
