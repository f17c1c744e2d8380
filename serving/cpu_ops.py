"""LoRA on vLLM's CPU backend: base rows stay base, and an adapter costs two small matmuls a layer.

vLLM gives a row (a token) of the base model the adapter slot -1. Its CPU operations, `vllm.lora.ops.torch_ops`, use
that as an index: `weights[-1]` is the last slot, so in a mixed batch the base's rows get the output of whatever adapter
sits there (vLLM pull requests #48421 and #49656, both open at 0.32). They also copy a whole weight matrix for each row.

`install` puts `Grouped` over vLLM's wrapper, the object through which all LoRA layers compute:

- `Batch`: which rows belong to which slot, worked out when the batch changes and not in each of a hundred layers. Rows
  of slot -1 are in no group: nothing is computed for them, nothing added.
- `Part`: one adapter in one layer, with what is zero left out. The slices of a packed layer (q, k and v; gate and up)
  lie side by side, so that an adapter costs two matmuls for all of them, and a layer that it leaves alone costs none.

Rounding: operands are in the dtype of the layer's output, products are summed in float32. What comes out of A is at
worst rounded to that dtype, as in vLLM; what comes out of B is added before it is rounded, where vLLM rounds twice.

No compiler traces this: vLLM's CPU platform sets `CompilationMode.NONE` wherever LoRA is on, with and without
`--enforce-eager`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import set_num_threads
from torch.nn.functional import linear

from loradock.registry.errors import LoradockError

FEW_ROWS = 64
"""Up to so many rows an adapter, float32 is faster than bfloat16, where each matmul takes long to begin."""
SMALL = 2**18
"""Up to so many values, that is worth a copy of an adapter's weights of a layer in float32."""
ONE_THREAD = 2**20
"""Up to so many multiplications, waking a second thread costs more than it saves, and far more on a busy machine."""
REPLACED = ("update_metadata", "add_shrink", "add_expand", "add_lora_embedding", "add_lora_linear", "add_lora_logits")
READ = ("token_lora_indices", "sampler_indices")


def install() -> None:
    """Put `Grouped` over vLLM's LoRA wrapper where vLLM runs on a CPU; a `vllm.general_plugins` entry point.

    Does nothing on other platforms or when called again. Raises LoradockError where there is nothing to replace.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.lora.punica_wrapper import punica_cpu

    stock = getattr(punica_cpu, "PunicaWrapperCPU", object)
    if issubclass(stock, Grouped):
        return
    if missing := [name for name in (*REPLACED, *READ) if not hasattr(stock, name)]:
        raise LoradockError(
            f"this vLLM's CPU backend has no {', '.join(missing)}, so its answers cannot be kept apart",
            hint="install the vLLM version that loradock pins",
        )
    punica_cpu.PunicaWrapperCPU = type("GroupedPunicaWrapperCPU", (Grouped, stock), {})


class Batch:
    """Which rows each adapter slot multiplies: of the batch or, where theirs are not neighbours, of `batch[order]`."""

    def __init__(self, slots: Tensor) -> None:
        rows_of: dict[int, list[int]] = {}
        self.rows = 0
        for slot, run in groupby(slots.tolist()):
            end = self.rows + sum(1 for _ in run)
            if slot >= 0:
                rows_of.setdefault(slot, []).extend(range(self.rows, end))
            self.rows = end
        self.order: Tensor | None = None
        spans = [slice(rows[0], rows[-1] + 1) for rows in rows_of.values()]
        if any(span.stop - span.start != len(rows) for span, rows in zip(spans, rows_of.values(), strict=True)):
            self.order = torch.tensor([row for rows in rows_of.values() for row in rows])
            spans = [slice(*ends) for ends in pairwise(accumulate(map(len, rows_of.values()), initial=0))]
        self.groups = tuple(zip(rows_of, spans, strict=True))

    def where(self, span: slice) -> slice | Tensor:
        """The rows of a group as an index into the batch."""
        return span if self.order is None else self.order[span]


class Part(NamedTuple):
    """One adapter in one layer: `down` (columns, in) and `up` (columns, out), and both in float32 where that is faster.

    A column is a rank of a slice in which neither A nor B is all zero; in `up` it is zero outside of its slice.
    """

    down: Tensor
    up: Tensor
    floats: tuple[Tensor, Tensor] | None
    values: int


class Layer:
    """One layer's adapters: `a` (slots, 1, rank, in) and `b` (slots, 1, out, rank) of each of its slices.

    Parts are made when a batch first needs them, and anew after vLLM has written into any of the layer's slots.
    """

    def __init__(self, a: Sequence[Tensor], b: Sequence[Tensor], sizes: Sequence[int]) -> None:
        self._slices = tuple(zip(a, b, accumulate(sizes, initial=0), strict=False))
        self._weights = (*a, *b)
        self._written = -1
        self._parts: dict[int, Part | None] = {}

    def parts(self, batch: Batch, like: Tensor) -> list[tuple[Part, slice]]:
        """What the batch's adapters have in this layer, and their rows; nothing of those that leave it alone."""
        written = sum([weight._version for weight in self._weights])  # noqa: SLF001 - a list is faster: this is hot
        if written != self._written:
            self._parts.clear()
            self._written = written
        for slot, _ in batch.groups:
            if slot not in self._parts:
                self._parts[slot] = self._part(slot, like)
        return [(part, span) for slot, span in batch.groups if (part := self._parts[slot])]

    def _part(self, slot: int, like: Tensor) -> Part | None:
        downs, ups = [], []
        for a, b, start in self._slices:
            kept = a[slot, 0].any(1) & b[slot, 0].any(0)
            up = like.new_zeros(int(kept.sum()), like.shape[1])
            out = up[:, start : start + b.shape[-2]]
            out.copy_(b[slot, 0, : out.shape[1], kept].T)
            downs.append(a[slot, 0, kept].to(like.dtype))
            ups.append(up)
        down, up = torch.cat(downs), torch.cat(ups)
        values = down.numel() + up.numel()
        small = like.dtype != torch.float32 and values <= SMALL
        return Part(down, up, (down.float(), up.float()) if small else None, values) if values else None

    def add(self, y: Tensor, x: Tensor, batch: Batch, scale: float) -> None:
        """Add `scale * x @ A.T @ B.T` of each row's adapter to `y`; rows of the base stay as they are."""
        parts = self.parts(batch, y)
        if not parts:
            return
        if batch.rows * max([part.values for part, _ in parts]) > ONE_THREAD:
            _add(y, x, batch, parts, scale)
            return
        threads = torch.get_num_threads()
        set_num_threads(1)  # torch's own: vLLM's worker puts one in `torch` that only writes a warning
        try:
            _add(y, x, batch, parts, scale)
        finally:
            set_num_threads(threads)


def _add(y: Tensor, x: Tensor, batch: Batch, parts: Sequence[tuple[Part, slice]], scale: float) -> None:
    order = batch.order
    rows, out = (x, y) if order is None else (x[order], y[order])
    in_float32 = batch.rows <= FEW_ROWS * len(parts) and all(part.floats for part, _ in parts)
    if in_float32:
        rows, out = rows.float(), out.float()
    for part, span in parts:
        down, up = part.floats if in_float32 and part.floats else (part.down, part.up)
        out[span].addmm_(linear(rows[span], down), up, alpha=scale)
    if order is not None:
        y.index_copy_(0, order, out.to(y.dtype))
    elif in_float32:
        y.copy_(out)


class Grouped:
    """What replaces methods of vLLM's `PunicaWrapperCPU`; their arguments are described there."""

    token_lora_indices: Tensor
    sampler_indices: Tensor

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        nothing = torch.empty(0, dtype=torch.long)
        self._tokens, self._prompts = Batch(nothing), Batch(nothing)
        self._layers: dict[int, tuple[object, Layer]] = {}

    def update_metadata(self, *arguments: Any, **options: Any) -> None:
        """Group the rows of the next step's batch."""
        super().update_metadata(*arguments, **options)  # type: ignore[misc]
        self._tokens, self._prompts = Batch(self.token_lora_indices), Batch(self.sampler_indices)

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_: Any,
    ) -> None:
        """Add each row's adapter to the output of a linear layer, in all its slices at once."""
        if self._tokens.groups:
            layer = self._layer(lora_a_stacked, lora_a_stacked, lora_b_stacked, output_slices)
            layer.add(y, x.to(y.dtype), self._tokens, scale)

    def add_lora_logits(
        self, y: Tensor, x: Tensor, lora_a_stacked: Tensor, lora_b_stacked: Tensor, scale: float, **_: Any
    ) -> None:
        """Add each row's adapter to the logits."""
        if self._tokens.groups:
            layer = self._layer(lora_a_stacked, (lora_a_stacked,), (lora_b_stacked,), (y.shape[1],))
            if layer.parts(self._tokens, y):
                layer.add(y, x.to(y.dtype), self._batch_of_logits(x), scale)

    def _batch_of_logits(self, x: Tensor) -> Batch:
        """A row is a request or, for log-probabilities of its prompt, a token: then `x` is a stretch of the step's."""
        if x.untyped_storage().nbytes() != x.nbytes:
            start = x.storage_offset() // x.stride(0)
            return Batch(self.token_lora_indices[start : start + len(x)])
        for batch in (self._prompts, self._tokens):
            if len(x) == batch.rows:
                return batch
        raise LoradockError(
            f"logits were asked for {len(x)} rows, and which adapters they belong to is unknown",
            hint="serve adapters that leave lm_head alone, or install the vLLM version that loradock pins",
        )

    def _layer(self, key: object, a: tuple[Tensor, ...], b: tuple[Tensor, ...], sizes: tuple[int, ...]) -> Layer:
        """The layer whose weights these are; kept with `key`, so that its id stays its own."""
        if id(key) not in self._layers:
            self._layers[id(key)] = key, Layer(a, b, sizes)
        return self._layers[id(key)][1]

    def add_shrink(
        self, y: Tensor | tuple[Tensor, ...], x: Tensor, lora_a_stacked: tuple[Tensor, ...], scale: float, **_: Any
    ) -> None:
        """Set the adapters' rows of each slice's `y` to `scale * x @ A.T`; for layers that shard A."""
        for slot, span in self._tokens.groups:
            rows = self._tokens.where(span)
            for out, weights in zip(y, lora_a_stacked, strict=True):
                out[rows] = scale * linear(x[rows].to(out.dtype), weights[slot, 0].to(out.dtype))

    def add_expand(
        self,
        y: Tensor,
        x: Tensor | tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,
        **_: Any,
    ) -> None:
        """Add each slice's `x @ B.T` to its columns of `y`, or set them; for layers that shard A."""
        start = offset_start
        for inputs, weights, size in zip(x, lora_b_stacked, output_slices, strict=True):
            out = y[:, start : start + size]
            start += size
            if not add_inputs:
                out.zero_()
            for slot, span in self._tokens.groups:
                rows = self._tokens.where(span)
                out[rows] += linear(inputs[rows].to(y.dtype), weights[slot, 0, : out.shape[1]].to(y.dtype))

    def add_lora_embedding(
        self, y: Tensor, x: Tensor, lora_b_stacked: Tensor, add_inputs: bool = True, **_: Any
    ) -> None:
        """Add each row's adapter to its embedding; `x` is what A gave."""
        self.add_expand(y, (x,), (lora_b_stacked,), (y.shape[1],), add_inputs=add_inputs)
