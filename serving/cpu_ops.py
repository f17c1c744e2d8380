"""LoRA on vLLM's CPU backend: base rows stay base, and an adapter costs one matmul.

vLLM gives a row (a token) of the base model the adapter slot -1. Its CPU operations, `vllm.lora.ops.torch_ops`, use
that as an index: `weights[-1]` is the last slot, so in a mixed batch the base's rows get the output of whatever adapter
sits there (vLLM pull requests #48421 and #49656, both open at 0.32). They also copy a whole weight matrix for each row.

`install` puts the operations below in their place. Rows are grouped by slot, each slot present multiplies its rows
once, and rows of slot -1 are in no group: nothing is computed for them, nothing added.

They are plain functions, without what a registered custom operation costs a call: no compiler traces them, because
vLLM's CPU platform sets `CompilationMode.NONE` wherever LoRA is on, with and without `--enforce-eager`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from registry.errors import LoradockError


class Plan(NamedTuple):
    """Which rows each adapter slot multiplies: of the batch or, where theirs are not contiguous, of `batch[order]`."""

    order: Tensor | None
    groups: tuple[tuple[int, slice], ...]


def install() -> None:
    """Replace vLLM's LoRA operations in this process where it runs on a CPU; a `vllm.general_plugins` entry point.

    Does nothing on other platforms or when called again. Raises LoradockError where there is nothing to replace.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.lora.punica_wrapper import punica_cpu

    if missing := [name for name in OPERATIONS if not hasattr(punica_cpu, name)]:
        raise LoradockError(
            f"this vLLM's CPU backend has no {', '.join(missing)}, so its answers cannot be kept apart",
            hint="install the vLLM version that loradock pins",
        )
    for name, operation in OPERATIONS.items():
        setattr(punica_cpu, name, operation)


def _shrink(inputs: Tensor, weights: Tensor, output: Tensor, plan: Plan, scaling: float = 1.0) -> None:
    """Set `output[:, :rank]` to `scaling * inputs @ weights[slot].T`; rows of the base become 0."""
    _add(inputs, weights, output[:, : weights.shape[-2]].zero_(), plan, scaling)


def _expand(inputs: Tensor, weights: Tensor, output: Tensor, plan: Plan, add_inputs: bool = True) -> None:
    """Add `inputs @ weights[slot].T` to `output`, or set it; where one is padded wider, over the width both have."""
    width = min(weights.shape[-2], output.shape[1])
    output = output[:, :width]
    _add(inputs, weights[..., :width, :], output if add_inputs else output.zero_(), plan)


def _expand_slice(
    inputs: Tensor, weights: Tensor, output: Tensor, plan: Plan, start: int, size: int, add_inputs: bool = True
) -> None:
    """Add `inputs @ weights[slot].T` to `size` columns of `output` from `start` on, or set them."""
    output = output[:, start : start + size]
    _add(inputs, weights, output if add_inputs else output.zero_(), plan)


def _add(inputs: Tensor, weights: Tensor, output: Tensor, plan: Plan, scaling: float = 1.0) -> None:
    """Add `scaling * inputs @ weights[slot].T` to `output`; `weights` is (slots, out, in) or (slots, 1, out, in).

    The operands are rounded to the dtype of `output`, as in vLLM; products and sums are float32, and rounded once.
    """
    if not plan.groups:
        return
    if len(inputs) == 1:
        inputs = inputs.expand(len(output), -1)
    weights = weights.flatten(0, -3)
    if plan.order is not None:
        inputs = inputs[plan.order]
    operands = inputs.to(output.dtype).float()
    total = (output if plan.order is None else output[plan.order]).float()
    for slot, rows in plan.groups:
        weight = weights[slot].to(output.dtype).float()
        total[rows].addmm_(operands[rows], weight.T, alpha=scaling)
    if plan.order is not None:
        output.index_copy_(0, plan.order, total.to(output.dtype))
    elif total is not output:
        output.copy_(total)


@lru_cache(maxsize=64)
def _plan(slots: tuple[int, ...], lengths: tuple[int, ...] | None, limit: int) -> Plan:
    """Group the rows below `limit`, given one slot a row or, with `lengths`, one a run of rows.

    Cached because all layers of a step ask the same. One index alone stands for every row, as it broadcasts in vLLM.
    """
    rows_of: dict[int, list[int]] = {}
    start = 0
    for slot, length in zip(slots, lengths or (1,) * len(slots), strict=True):
        rows_of.setdefault(slot, []).extend(range(start, min(start + length, limit)))
        start += length
    grouped = [(slot, rows) for slot, rows in rows_of.items() if slot >= 0 and rows]
    if start == 1:
        return Plan(None, tuple((slot, slice(0, limit)) for slot, _ in grouped))
    if all(rows[-1] - rows[0] == len(rows) - 1 for _, rows in grouped):
        return Plan(None, tuple((slot, slice(rows[0], rows[-1] + 1)) for slot, rows in grouped))
    order = torch.tensor([row for _, rows in grouped for row in rows])
    ends = accumulate(len(rows) for _, rows in grouped)
    return Plan(
        order, tuple((slot, slice(end - len(rows), end)) for (slot, rows), end in zip(grouped, ends, strict=True))
    )


def _by_row(operation: Callable[..., None]) -> Callable[..., None]:
    """The operation as vLLM calls it with one slot a row."""

    def bgmv(inputs: Tensor, weights: Tensor, output: Tensor, slots: Tensor, *rest: Any, **options: Any) -> None:
        plan = _plan(tuple(slots.tolist()), None, len(output))
        operation(inputs, weights, output, plan, *rest, **options)

    return bgmv


def _by_run(operation: Callable[..., None]) -> Callable[..., None]:
    """The operation as vLLM calls it with one slot a run of rows: starts, lengths, slots, three counts."""

    def sgmv(inputs: Tensor, weights: Tensor, output: Tensor, *metadata: Any, **options: Any) -> None:
        _starts, lengths, slots, _runs, _longest, _rows, *rest = metadata
        plan = _plan(tuple(slots.tolist()), tuple(lengths.tolist()), len(output))
        operation(inputs, weights, output, plan, *rest, **options)

    return sgmv


OPERATIONS = {
    "bgmv_shrink": _by_row(_shrink),
    "bgmv_expand": _by_row(_expand),
    "bgmv_expand_slice": _by_row(_expand_slice),
    "sgmv_shrink": _by_run(_shrink),
    "sgmv_expand": _by_run(_expand),
    "sgmv_expand_slice": _by_run(_expand_slice),
}
