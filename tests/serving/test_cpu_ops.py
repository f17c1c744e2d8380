"""Every operation against a loop over rows, and through vLLM's own wrapper once installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from serving.cpu_ops import OPERATIONS, install

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # vLLM's, at import

SLOTS = 4
BATCHES = {
    "mixed": [0, -1, 2, 0, 3, -1, 1, 2, 0],
    "runs": [1, 1, 1, -1, -1, 3, 3, 0],
    "base in the middle": [2, 2, -1, -1, 0],
    "one adapter": [1] * 7,
    "one adapter and the base": [-1, 3, -1, 3, -1],
    "the base alone": [-1] * 6,
    "one row": [2],
    "one row of the base": [-1],
    "many": [*range(SLOTS), -1] * 20,
}
batches = pytest.mark.parametrize("slots", BATCHES.values(), ids=BATCHES.keys())
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
shapes = pytest.mark.parametrize(("rank", "dimensions"), [(1, 4), (4, 3), (16, 4)])
styles = pytest.mark.parametrize("style", ["bgmv", "sgmv"])
adding = pytest.mark.parametrize("add_inputs", [True, False], ids=["add", "set"])


@pytest.fixture
def normal() -> Callable[..., Any]:
    """Seeded normal values, divided by the root of the last size so that products stay near 1."""
    generator = torch.Generator().manual_seed(7)
    return lambda *size, dtype=torch.float32: (torch.randn(size, generator=generator) / size[-1] ** 0.5).to(dtype)


@pytest.fixture
def punica_cpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's module with the operations installed, and its own put back afterwards."""
    from vllm.lora.punica_wrapper import punica_cpu

    for name in OPERATIONS:
        monkeypatch.setattr(punica_cpu, name, getattr(punica_cpu, name))
    install()
    return punica_cpu


def call(name: str, style: str, inputs: Any, weights: Any, output: Any, slots: list[int], *rest: Any) -> Any:
    """The operation on a copy of `output`, called as vLLM calls it."""
    output, index = output.clone(), torch.tensor(slots)
    metadata: tuple[Any, ...] = (index,)
    if style == "sgmv":
        of_run, lengths = torch.unique_consecutive(index, return_counts=True)
        starts = lengths.cumsum(0) - lengths
        metadata = (starts, lengths, of_run, len(of_run), int(lengths.max()), len(slots))
    OPERATIONS[f"{style}_{name}"](inputs, weights, output, *metadata, *rest)
    return output


def loop(
    inputs: Any, weights: Any, output: Any, slots: list[int], columns: slice, *, add: bool, scaling: float = 1.0
) -> Any:
    """What should come out, one row at a time, in float64; operands rounded to the output's dtype as in vLLM."""
    output = output.clone()
    dtype = output.dtype
    for row, slot in enumerate(slots):
        before = output[row, columns].double() if add else torch.zeros_like(output[row, columns]).double()
        if slot >= 0:
            weight = weights[slot].reshape(weights.shape[-2:]).to(dtype).double()[: len(before)]
            before += scaling * weight @ inputs[row].to(dtype).double()
        output[row, columns] = before.to(dtype)
    return output


@batches
@dtypes
@shapes
@styles
def test_shrink(normal: Any, slots: list[int], dtype: Any, rank: int, dimensions: int, style: str) -> None:
    inputs, output = normal(len(slots), 48, dtype=dtype), normal(len(slots), rank + 2)
    weights = normal(SLOTS, *[1] * (dimensions - 3), rank, 48, dtype=dtype)
    got = call("shrink", style, inputs, weights, output, slots, 0.5)
    torch.testing.assert_close(got, loop(inputs, weights, output, slots, slice(rank), add=False, scaling=0.5))


@batches
@dtypes
@shapes
@styles
@adding
def test_expand(
    normal: Any, slots: list[int], dtype: Any, rank: int, dimensions: int, style: str, add_inputs: bool
) -> None:
    inputs, output = normal(len(slots), rank), normal(len(slots), 40, dtype=dtype)
    weights = normal(SLOTS, *[1] * (dimensions - 3), 40, rank, dtype=dtype)
    got = call("expand", style, inputs, weights, output, slots, add_inputs)
    torch.testing.assert_close(got, loop(inputs, weights, output, slots, slice(None), add=add_inputs))


@batches
@dtypes
@shapes
@styles
@adding
def test_expand_slice(
    normal: Any, slots: list[int], dtype: Any, rank: int, dimensions: int, style: str, add_inputs: bool
) -> None:
    inputs, output = normal(len(slots), rank), normal(len(slots), 40, dtype=dtype)
    weights = normal(SLOTS, *[1] * (dimensions - 3), 24, rank, dtype=dtype)
    got = call("expand_slice", style, inputs, weights, output, slots, 10, 24, add_inputs)
    torch.testing.assert_close(got, loop(inputs, weights, output, slots, slice(10, 34), add=add_inputs))


@batches
@dtypes
@styles
def test_base_rows_keep_every_bit(normal: Any, slots: list[int], dtype: Any, style: str) -> None:
    inputs, output = normal(len(slots), 8), normal(len(slots), 40, dtype=dtype)
    base = [row for row, slot in enumerate(slots) if slot == -1]
    weights = normal(SLOTS, 1, 40, 8, dtype=dtype)
    assert torch.equal(call("expand", style, inputs, weights, output, slots, True)[base], output[base])
    assert not call("expand", style, inputs, weights, output, slots, False)[base].any()
    assert not call("shrink", style, output, weights.mT, inputs, slots, 1.0)[base].any()


@pytest.mark.parametrize(("weight_width", "output_width"), [(40, 32), (32, 40)])
def test_expand_over_the_width_both_have(normal: Any, weight_width: int, output_width: int) -> None:
    slots = BATCHES["mixed"]
    inputs, output = normal(len(slots), 8), normal(len(slots), output_width)
    weights = normal(SLOTS, 1, weight_width, 8)
    got = call("expand", "bgmv", inputs, weights, output, slots, True)
    torch.testing.assert_close(got, loop(inputs, weights, output, slots, slice(32), add=True))


@pytest.mark.parametrize(
    ("rows", "index", "outputs"), [(1, [2], 5), (5, [2], 5), (1, [2, 0, 2], 3), (6, [0, 2, 1, 2, 0, 3], 4)]
)
def test_unequal_rows_as_stock_has_them(normal: Any, rows: int, index: list[int], outputs: int) -> None:
    """One row or index stands for all; rows beyond the output's are dropped. (No base rows: stock is right here.)"""
    from vllm.lora.ops.torch_ops import lora_ops

    inputs, weights, output = normal(rows, 8), normal(SLOTS, 1, 40, 8), normal(outputs, 40)
    expected = output.clone()
    lora_ops.bgmv_expand(inputs, weights, expected, torch.tensor(index), True)
    torch.testing.assert_close(call("expand", "bgmv", inputs, weights, output, index, True), expected)


def test_stock_gives_base_rows_the_last_slots_output(normal: Any) -> None:
    """Passes as long as vLLM has the fault; once this fails, `serving.cpu_ops` is needed for speed only."""
    from vllm.lora.ops.torch_ops import lora_ops

    inputs, weights, output = normal(2, 8), normal(SLOTS, 1, 40, 8), torch.zeros(2, 40)
    lora_ops.bgmv_expand(inputs, weights, output, torch.tensor([0, -1]), True)
    torch.testing.assert_close(output[1], weights[-1, 0] @ inputs[1])


@pytest.mark.parametrize("is_prefill", [True, False], ids=["prefill", "decode"])
@dtypes
def test_through_vllms_wrapper(punica_cpu: Any, normal: Any, is_prefill: bool, dtype: Any) -> None:
    """Linear (two slices), embedding and logits layers call what was installed, with arguments it takes."""
    from vllm.lora.layers import LoRAMapping

    slots = BATCHES["mixed"]
    rows = len(slots)
    ids = [slot + 11 if slot >= 0 else 0 for slot in slots]
    wrapper = punica_cpu.PunicaWrapperCPU(64, 64, device="cpu")
    wrapper.update_metadata(LoRAMapping(ids, ids, is_prefill=is_prefill), [11, 12, 13, 14], SLOTS, 100)

    inputs, output = normal(rows, 48, dtype=dtype), normal(rows, 56, dtype=dtype)
    a = [normal(SLOTS, 1, 8, 48, dtype=dtype) for _ in range(2)]
    b = [normal(SLOTS, 1, size, 8, dtype=dtype) for size in (40, 16)]
    zeros = torch.zeros(rows, 8)
    shrunk = [loop(inputs, weights, zeros, slots, slice(None), add=False) for weights in a]

    got = output.clone()
    wrapper.add_lora_linear(got, inputs, tuple(a), tuple(b), 1.0, (40, 16))
    expected = loop(shrunk[0], b[0], output, slots, slice(0, 40), add=True)
    torch.testing.assert_close(got, loop(shrunk[1], b[1], expected, slots, slice(40, 56), add=True))

    got = output[:, :40].clone()
    wrapper.add_lora_logits(got, inputs, a[0], b[0], 1.0)
    torch.testing.assert_close(got, loop(shrunk[0], b[0], output[:, :40], slots, slice(None), add=True))

    got = output[:, :40].clone()
    wrapper.add_lora_embedding(got, shrunk[0].to(dtype), b[0], add_inputs=True)
    torch.testing.assert_close(got, loop(shrunk[0].to(dtype), b[0], output[:, :40], slots, slice(None), add=True))


def test_install_twice(punica_cpu: Any) -> None:
    install()
    assert all(getattr(punica_cpu, name) is operation for name, operation in OPERATIONS.items())


def test_install_elsewhere_does_nothing(punica_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import platforms

    class Elsewhere:
        def is_cpu(self) -> bool:
            return False

    stock = object()
    monkeypatch.setattr(platforms, "current_platform", Elsewhere(), raising=False)
    monkeypatch.setattr(punica_cpu, "bgmv_expand", stock)
    install()
    assert punica_cpu.bgmv_expand is stock


def test_install_refuses_a_vllm_without_the_functions(punica_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from registry.errors import LoradockError

    monkeypatch.delattr(punica_cpu, "sgmv_expand")
    with pytest.raises(LoradockError, match="sgmv_expand"):
        install()
