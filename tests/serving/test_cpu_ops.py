"""Random batches against a loop over rows in float64, through vLLM's own wrapper with ours installed over it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from loradock.registry.errors import LoradockError
from loradock.serving.cpu_ops import FEW_ROWS, REPLACED, Grouped, install
from tests.support.chance import seeds

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # vLLM's, at import

SLOTS = 4
RANK = 8
INPUTS = 48
SIZES = (40, 16, 16)
BATCHES = {
    "mixed": [0, -1, 2, 0, 3, -1, 1, 2, 0],
    "runs": [1, 1, 1, -1, -1, 3, 3, 0],
    "base in the middle": [2, 2, -1, -1, 0],
    "one adapter": [1] * 7,
    "one adapter and the base": [-1, 3, -1, 3, -1],
    "the base, then an adapter": [-1, -1, 2, 2],
    "the base alone": [-1] * 6,
    "one row": [2],
    "one row of the base": [-1],
    "long prompts": [0] * 70 + [-1] * 70 + [3] * 70,
    "long prompts in turns": [0, 1] * (FEW_ROWS + 6),
    "many": [*range(SLOTS), -1] * (FEW_ROWS // 2),
}
batches = pytest.mark.parametrize("slots", BATCHES.values(), ids=BATCHES.keys())
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2**-7, "atol": 2**-7},
    torch.float16: {"rtol": 2**-10, "atol": 2**-10},
}
"""Of values near 1: the last bit of the result, and of what A gives."""

Stacks = tuple[Any, ...]


@pytest.fixture
def normal() -> Callable[..., Any]:
    """Seeded normal values, divided by the root of the last size so that products stay near 1."""
    generator = torch.Generator().manual_seed(7)
    return lambda *size, dtype=torch.float32: (torch.randn(size, generator=generator) / size[-1] ** 0.5).to(dtype)


@pytest.fixture
def punica_cpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's module with ours installed, and its own put back afterwards."""
    from vllm.lora.punica_wrapper import punica_cpu

    monkeypatch.setattr(punica_cpu, "PunicaWrapperCPU", punica_cpu.PunicaWrapperCPU)
    install()
    return punica_cpu


@pytest.fixture
def wrapper(punica_cpu: Any) -> Any:
    return punica_cpu.PunicaWrapperCPU(4096, 256, device="cpu")


@pytest.fixture
def stock() -> Any:
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    assert not issubclass(PunicaWrapperCPU, Grouped)
    return PunicaWrapperCPU(4096, 256, device="cpu")


def step(wrapper: Any, slots: Sequence[int], requests: Sequence[int] | None = None, *, is_prefill: bool = True) -> None:
    """Tell the wrapper its batch as vLLM does: adapter ids of the tokens, and of the requests."""
    from vllm.lora.layers import LoRAMapping

    most = max(SLOTS, *slots) if slots else SLOTS
    of_tokens, of_requests = (
        tuple(slot + 11 if slot >= 0 else 0 for slot in of) for of in (slots, slots if requests is None else requests)
    )
    mapping = LoRAMapping(of_tokens, of_requests, is_prefill=is_prefill)
    wrapper.update_metadata(mapping, [slot + 11 for slot in range(most + 1)], most + 2, 100)


def stacks(normal: Any, slots: int, dtype: Any, ranks: Sequence[int] | None = None) -> tuple[Stacks, Stacks]:
    """A and B of a layer with three slices; `ranks` of the slots, which vLLM pads with zeros."""
    a = tuple(normal(slots, 1, RANK, INPUTS, dtype=dtype) for _ in SIZES)
    b = tuple(normal(slots, 1, size, RANK, dtype=dtype) for size in SIZES)
    for slot, rank in enumerate(ranks or []):
        for weights in a:
            weights[slot, :, rank:] = 0
        for weights in b:
            weights[slot, :, :, rank:] = 0
    return a, b


def loop(x: Any, a: Stacks, b: Stacks, y: Any, slots: Sequence[int], scale: float = 1.0) -> Any:
    """What should come out, one row at a time, in float64."""
    out = y.double()
    for row, slot in enumerate(slots):
        start = 0
        for down, up in zip(a, b, strict=True):
            if slot >= 0:
                shrunk = down[slot, 0].double() @ x[row].double()
                out[row, start : start + up.shape[-2]] += scale * up[slot, 0].double() @ shrunk
            start += up.shape[-2]
    return out


def base_rows(slots: Sequence[int]) -> list[int]:
    return [row for row, slot in enumerate(slots) if slot == -1]


@batches
@dtypes
@pytest.mark.parametrize("is_prefill", [True, False], ids=["prefill", "decode"])
def test_linear(wrapper: Any, normal: Any, slots: list[int], dtype: Any, is_prefill: bool) -> None:
    x, y = normal(len(slots), INPUTS, dtype=dtype), normal(len(slots), sum(SIZES), dtype=dtype)
    a, b = stacks(normal, SLOTS, dtype)
    got = y.clone()
    step(wrapper, slots, is_prefill=is_prefill)
    wrapper.add_lora_linear(got, x, a, b, 0.5, SIZES)
    torch.testing.assert_close(got, loop(x, a, b, y, slots, 0.5).to(dtype), **TOLERANCE[dtype])
    assert torch.equal(got[base_rows(slots)], y[base_rows(slots)])


@pytest.mark.chance
@dtypes
@pytest.mark.parametrize("seed", seeds(25))
def test_linear_on_random_batches(wrapper: Any, normal: Any, seed: int, dtype: Any) -> None:
    """Slots, ranks from 0 on, and runs of rows by chance; step after step on the same weights, some written between."""
    chance = random.Random(seed)  # noqa: S311
    count = chance.choice([1, 2, 5, 16])
    ranks = [chance.choice([0, 1, 3, RANK]) for _ in range(count)]
    a, b = stacks(normal, count, dtype, ranks)
    for _ in range(4):
        runs = [(chance.randrange(-1, count), chance.choice([1, 1, 1, 2, 30])) for _ in range(chance.randrange(1, 12))]
        slots = [slot for slot, length in runs for _ in range(length)]
        x, y = normal(len(slots), INPUTS, dtype=dtype), normal(len(slots), sum(SIZES), dtype=dtype)
        got = y.clone()
        step(wrapper, slots)
        wrapper.add_lora_linear(got, x, a, b, 1.0, SIZES)
        torch.testing.assert_close(got, loop(x, a, b, y, slots).to(dtype), **TOLERANCE[dtype])
        assert torch.equal(got[base_rows(slots)], y[base_rows(slots)])
        changed = chance.randrange(count)
        with torch.inference_mode():
            for weights in (*a, *b):
                weights[changed] = normal(*weights[changed].shape, dtype=dtype)


@batches
@dtypes
def test_no_less_exact_than_stock(stock: Any, wrapper: Any, normal: Any, slots: list[int], dtype: Any) -> None:
    """On rows with an adapter, against float64 without any rounding."""
    slots = [slot for slot in slots if slot >= 0] or [0]
    x, y = normal(len(slots), INPUTS, dtype=dtype), normal(len(slots), sum(SIZES), dtype=dtype)
    a, b = stacks(normal, SLOTS, dtype)
    exact = loop(x, a, b, y, slots)
    errors = []
    for one in (wrapper, stock):
        got = y.clone()
        step(one, slots)
        one.add_lora_linear(got, x, a, b, 1.0, SIZES)
        errors.append(float((got.double() - exact).abs().mean()))
    assert errors[0] <= errors[1] * 1.2


def test_stock_gives_base_rows_the_last_slots_output(stock: Any, normal: Any) -> None:
    """Passes as long as vLLM has the fault; once this fails, `loradock.serving.cpu_ops` is needed for speed only."""
    x, (a, b) = normal(2, INPUTS), stacks(normal, SLOTS, torch.float32)
    y = torch.zeros(2, sum(SIZES))
    step(stock, [0, -1])
    stock.add_lora_linear(y, x, a, b, 1.0, SIZES)
    torch.testing.assert_close(y, loop(x, a, b, torch.zeros_like(y), [0, SLOTS - 1]).float())


@dtypes
def test_a_written_slot_counts_at_once(wrapper: Any, normal: Any, dtype: Any) -> None:
    """vLLM writes into the same tensors, inside and outside of inference mode, while the batch stays the same."""
    x, (a, b) = normal(3, INPUTS, dtype=dtype), stacks(normal, SLOTS, dtype)
    step(wrapper, [1, 1, 1])
    before, after, reset = (torch.zeros(3, sum(SIZES), dtype=dtype) for _ in range(3))
    wrapper.add_lora_linear(before, x, a, b, 1.0, SIZES)
    with torch.inference_mode():
        b[2][1, 0, : SIZES[2], :RANK].copy_(normal(SIZES[2], RANK, dtype=dtype))
        wrapper.add_lora_linear(after, x, a, b, 1.0, SIZES)
    expected = loop(x, a, b, torch.zeros_like(after), [1] * 3).to(dtype)
    torch.testing.assert_close(after, expected, **TOLERANCE[dtype])
    assert not torch.equal(before, after)
    for weights in (*a, *b):
        weights[1] = 0
    wrapper.add_lora_linear(reset, x, a, b, 1.0, SIZES)
    assert not reset.any()


@batches
@dtypes
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_adapter_breaks_its_own_rows_only(
    wrapper: Any, normal: Any, slots: list[int], dtype: Any, broken: float
) -> None:
    x, y = normal(len(slots), INPUTS, dtype=dtype), normal(len(slots), sum(SIZES), dtype=dtype)
    a, b = stacks(normal, SLOTS, dtype)
    a[0][2], b[1][2] = broken, broken
    got = y.clone()
    step(wrapper, slots)
    wrapper.add_lora_linear(got, x, a, b, 1.0, SIZES)
    expected = loop(x, a, b, y, slots).to(dtype)
    whole = [row for row, slot in enumerate(slots) if slot != 2]
    torch.testing.assert_close(got[whole], expected[whole], **TOLERANCE[dtype])


@pytest.mark.parametrize("rows", [1, FEW_ROWS, 4096], ids=str)
def test_threads_stay_as_they_were(wrapper: Any, normal: Any, rows: int) -> None:
    threads = torch.get_num_threads()
    x, (a, b) = normal(rows, INPUTS), stacks(normal, SLOTS, torch.float32)
    step(wrapper, [0] * rows)
    wrapper.add_lora_linear(torch.zeros(rows, sum(SIZES)), x, a, b, 1.0, SIZES)
    assert torch.get_num_threads() == threads


class TestLogits:
    WIDTH = 40

    @pytest.fixture
    def head(self, normal: Any) -> tuple[Any, Any]:
        return normal(SLOTS, 1, RANK, INPUTS), normal(SLOTS, 1, self.WIDTH, RANK)

    @pytest.mark.parametrize("width", [32, 40, 48], ids=["cut", "exact", "padded"])
    @pytest.mark.parametrize("requests", [[2, -1, 0, 2], [3], [-1, -1]], ids=str)
    def test_of_requests(self, wrapper: Any, normal: Any, head: Any, requests: list[int], width: int) -> None:
        x, y = normal(len(requests), INPUTS), normal(len(requests), width)
        got, (a, b) = y.clone(), head
        step(wrapper, [slot for slot in requests for _ in range(3)], requests)
        wrapper.add_lora_logits(got, x, a, b, 1.0)
        expected, both = y.clone(), min(width, self.WIDTH)
        expected[:, :both] = loop(x, (a,), (b[:, :, :both],), y[:, :both], requests).float()
        torch.testing.assert_close(got, expected)

    @pytest.mark.parametrize(("first", "rows"), [(0, 3), (2, 2), (3, 4), (5, 1), (0, 7)])
    def test_of_a_prompts_tokens(self, wrapper: Any, normal: Any, head: Any, first: int, rows: int) -> None:
        """For the log-probabilities of a prompt vLLM cuts a request's rows from those of the step."""
        slots = [2, 2, 2, -1, -1, 0, 0]
        x, y = normal(len(slots), INPUTS)[first : first + rows], normal(rows, self.WIDTH)
        got, (a, b) = y.clone(), head
        step(wrapper, slots, [2, -1])
        wrapper.add_lora_logits(got, x, a, b, 1.0)
        torch.testing.assert_close(got, loop(x, (a,), (b,), y, slots[first : first + rows]).float())

    def test_of_unknown_rows(self, wrapper: Any, normal: Any, head: Any) -> None:
        step(wrapper, [2, 2, 0, 0], [2, 0])
        with pytest.raises(LoradockError, match="3 rows"):
            wrapper.add_lora_logits(torch.zeros(3, self.WIDTH), normal(3, INPUTS), *head, 1.0)

    def test_of_unknown_rows_where_no_adapter_has_a_head(self, wrapper: Any, normal: Any, head: Any) -> None:
        y = normal(3, self.WIDTH)
        got, (a, b) = y.clone(), head
        step(wrapper, [2, 2, 0, 0], [2, 0])
        wrapper.add_lora_logits(got, normal(3, INPUTS), a, b.zero_(), 1.0)
        assert torch.equal(got, y)

    def test_in_float32_on_a_bfloat16_model(self, wrapper: Any, normal: Any, head: Any) -> None:
        x, (a, b) = normal(2, INPUTS, dtype=torch.bfloat16), (weights.bfloat16() for weights in head)
        got = torch.zeros(2, self.WIDTH)
        step(wrapper, [2, -1])
        wrapper.add_lora_logits(got, x, a, b, 1.0)
        torch.testing.assert_close(got, loop(x, (a,), (b,), torch.zeros(2, self.WIDTH), [2, -1]).float())


@batches
@dtypes
def test_embedding(wrapper: Any, normal: Any, slots: list[int], dtype: Any) -> None:
    shrunk, y, b = normal(len(slots), RANK, dtype=dtype), normal(len(slots), 40), normal(SLOTS, 1, 40, RANK)
    y, b = y.to(dtype), b.to(dtype)
    got = y.clone()
    step(wrapper, slots)
    wrapper.add_lora_embedding(got, shrunk, b, add_input=True)
    same = torch.eye(RANK).expand(SLOTS, 1, RANK, RANK)
    torch.testing.assert_close(got, loop(shrunk, (same,), (b,), y, slots).to(dtype), **TOLERANCE[dtype])


@batches
@dtypes
@pytest.mark.parametrize("add_inputs", [True, False], ids=["add", "set"])
def test_sharded(wrapper: Any, normal: Any, slots: list[int], dtype: Any, add_inputs: bool) -> None:
    """Layers that shard A call the two halves, with their own float32 buffer and a shard's first column."""
    x, y = normal(len(slots), INPUTS, dtype=dtype), normal(len(slots), 5 + sum(SIZES), dtype=dtype)
    a, b = stacks(normal, SLOTS, dtype)
    buffer, got = torch.zeros(len(SIZES), len(slots), RANK), y.clone()
    step(wrapper, slots)
    wrapper.add_shrink(buffer, x, a, 0.5)
    wrapper.add_expand(got, buffer, b, SIZES, offset_start=5, add_inputs=add_inputs)
    before = y[:, 5:] if add_inputs else torch.zeros_like(y[:, 5:])
    torch.testing.assert_close(got[:, 5:], loop(x, a, b, before, slots, 0.5).to(dtype), **TOLERANCE[dtype])
    assert torch.equal(got[:, :5], y[:, :5])
    assert not buffer[:, base_rows(slots)].any()


def test_the_wrapper_that_vllm_makes_is_ours(punica_cpu: Any) -> None:
    from vllm.lora.punica_wrapper import get_punica_wrapper

    assert isinstance(get_punica_wrapper(64, 64, device="cpu", lora_config=None), Grouped)


def test_install_twice(punica_cpu: Any) -> None:
    once = punica_cpu.PunicaWrapperCPU
    install()
    assert punica_cpu.PunicaWrapperCPU is once


def test_install_elsewhere_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import platforms
    from vllm.lora.punica_wrapper import punica_cpu

    class FakePlatform:
        def is_cpu(self) -> bool:
            return False

    stock = punica_cpu.PunicaWrapperCPU
    monkeypatch.setattr(platforms, "current_platform", FakePlatform(), raising=False)
    install()
    assert punica_cpu.PunicaWrapperCPU is stock


@pytest.mark.parametrize("name", REPLACED)
def test_install_refuses_a_vllm_without_the_methods(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from vllm.lora.punica_wrapper import punica_cpu

    without = {known: None for known in ("token_lora_indices", "sampler_indices", *REPLACED) if known != name}
    monkeypatch.setattr(punica_cpu, "PunicaWrapperCPU", type("Stock", (), without))
    with pytest.raises(LoradockError, match=name):
        install()


def test_install_refuses_a_vllm_without_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.lora.punica_wrapper import punica_cpu

    monkeypatch.delattr(punica_cpu, "PunicaWrapperCPU")
    with pytest.raises(LoradockError, match="add_lora_linear"):
        install()
