"""The verdict on a version, on engines whose outputs are made up; `test_parity` has a real one."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pytest

from loradock.registry.reference import Probe, Reference
from loradock.serving.probe import Proof, Scored, is_clear, prove
from loradock.serving.prober import Measure, Prober
from tests.support.chance import seeds

PROMPTS = [tuple(range(start, start + 44)) for start in range(0, 176, 44)]
ANSWER = 16
EXACT, COARSE = 5e-6, 0.03
"""How far a token strays in float32 and in bfloat16, in nats, as measured on vLLM."""

Change = Callable[[int], float]
"""What an adapter adds to the log-probability of a token, in nats."""


def base_of(token: int) -> float:
    return -3 * random.Random(token).random()  # noqa: S311 - no secret


def adapter(strength: float, seed: int = 0) -> Change:
    return lambda token: random.Random(1000 * seed + token).gauss(0, strength)  # noqa: S311


def part_of(change: Change, share: float) -> Change:
    """An adapter of which some tokens' share is missing, as where layers are ignored."""
    return lambda token: change(token) if random.Random(-token).random() < share else 0.0  # noqa: S311


class FakeModel:
    """Answers with the base's log-probabilities and what an adapter adds, blurred by rounding."""

    def __init__(self, change: Change = lambda _: 0.0, noise: float = 0.0, seed: int = 0) -> None:
        self.change, self.noise, self.random, self.asked = change, noise, random.Random(seed), 0  # noqa: S311
        self.ranks: dict[int, int] = {}

    async def __call__(self, tokens: Sequence[int]) -> Sequence[Scored]:
        self.asked += 1
        return [
            Scored(base_of(token) + self.change(token) + self.random.gauss(0, self.noise), self.ranks.get(token, 1))
            for token in tokens[1:]
        ]


def reference(change: Change, *, margin: float = 1.0) -> Reference:
    """What an exact engine says with an adapter."""
    return Reference(
        adapter="a" * 64,
        base="b" * 64,
        config="c" * 64,
        software={"peft": "0"},
        at=datetime(2025, 1, 1, tzinfo=UTC),
        probes=tuple(
            Probe(
                prompt=tokens[:-ANSWER],
                answer=tokens[-ANSWER:],
                adapted=tuple(base_of(token) + change(token) for token in tokens[1:]),
                bare=tuple(base_of(token) for token in tokens[1:]),
                margins=(margin,) * ANSWER,
            )
            for tokens in PROMPTS
        ),
    )


def judge(base: Measure, version: Measure, held_against: Reference | None = None, precision: str = "bfloat16") -> Proof:
    return asyncio.run(Prober(base, lambda: PROMPTS, precision).prove(version, held_against))


@pytest.mark.parametrize("noise", [0.0, 1e-6, 0.02])
@pytest.mark.chance
@pytest.mark.parametrize("seed", seeds(10))
def test_an_adapter_without_effect_is_told_from_rounding(noise: float, seed: int) -> None:
    proof = judge(FakeModel(noise=noise, seed=seed), FakeModel(noise=noise, seed=seed + 100), reference(adapter(0.1)))
    assert "no effect" in proof.fault


@pytest.mark.parametrize(("shift", "noise"), [(1e-3, 0.0), (1e-3, 1e-6), (0.05, 0.01), (2.0, 0.02)])
def test_a_subtle_adapter_passes_where_its_effect_exceeds_rounding(shift: float, noise: float) -> None:
    proof = judge(FakeModel(noise=noise, seed=1), FakeModel(lambda _: shift, noise, seed=2))
    assert (proof.fault, proof.parity) == ("", None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_output_that_is_no_number_is_a_fault(value: float) -> None:
    async def broken(tokens: Sequence[int]) -> Sequence[Scored]:
        return [Scored(value, 1)] * (len(tokens) - 1)

    assert judge(FakeModel(), broken, reference(adapter(0.1))).fault == "its output is not a number"


def test_an_answer_of_another_length_is_a_fault() -> None:
    async def short(_: Sequence[int]) -> Sequence[Scored]:
        return [Scored(-1.0, 1)]

    assert judge(FakeModel(), short, reference(adapter(0.1))).fault


def test_without_a_second_pass_an_effect_that_is_not_clear_is_none() -> None:
    """The proof is a function of what was measured alone."""
    base, near, far = ([[Scored(value, 1)] * 8] for value in (-1.0, -1.05, -2.0))
    assert (is_clear(base, near), is_clear(base, far)) == (False, True)
    assert "no effect" in prove(None, base, near, None, "float32").fault
    assert prove(None, base, near, base, "float32").fault == ""
    assert prove(None, base, far, None, "float32").fault == ""


def test_a_clear_effect_takes_one_pass_of_each() -> None:
    base, version = FakeModel(), FakeModel(lambda _: 1.0)
    judge(base, version)
    assert (base.asked, version.asked) == (len(PROMPTS), len(PROMPTS))


@pytest.mark.parametrize("noise", [0.0, EXACT, COARSE])
@pytest.mark.parametrize("strength", [0.1, 0.3, 2.0])
@pytest.mark.chance
@pytest.mark.parametrize("seed", seeds(5))
def test_the_adapter_that_was_recorded_passes_in_every_precision(noise: float, strength: float, seed: int) -> None:
    change = adapter(strength, seed)
    proof = judge(FakeModel(noise=noise, seed=seed), FakeModel(change, noise, seed + 100), reference(change))
    assert not proof.fault


FAULTS: dict[str, Callable[[Change], Change]] = {
    "doubled": lambda change: lambda token: 2 * change(token),
    "halved": lambda change: lambda token: change(token) / 2,
    "reversed": lambda change: lambda token: -change(token),
    "half of it missing": lambda change: part_of(change, 0.5),
    "another": lambda _: adapter(0.3, seed=77),
    "rows of others": lambda change: lambda token: change(token + 1),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("noise", [EXACT, COARSE])
@pytest.mark.chance
@pytest.mark.parametrize("seed", seeds(5))
def test_another_effect_than_the_recorded_one_is_a_fault_in_every_precision(
    fault: str, noise: float, seed: int
) -> None:
    change = adapter(0.3, seed)
    proof = judge(
        FakeModel(noise=noise, seed=seed), FakeModel(FAULTS[fault](change), noise, seed + 100), reference(change)
    )
    assert "PEFT" in proof.fault


@pytest.mark.parametrize("strength", [1e-3, 0.02, 0.3])
def test_in_float32_a_twentieth_that_is_missing_is_a_fault(strength: float) -> None:
    change = adapter(strength)
    served = FakeModel(part_of(change, 0.95), EXACT, 2)
    assert "PEFT" in judge(FakeModel(noise=EXACT, seed=1), served, reference(change), "float32").fault


@pytest.mark.parametrize("strength", [0.3, 2.0, 8.0])
def test_the_rounding_of_a_strong_effect_grows_with_it_in_few_bits(strength: float) -> None:
    """On vLLM in bfloat16, by up to 3.3 % of an effect of 8 nats."""
    change, rounding = adapter(strength), adapter(0.033 * strength, seed=5)
    found = reference(change, margin=0.0)
    few = FakeModel(lambda token: change(token) + rounding(token), COARSE, 2)
    assert not judge(FakeModel(noise=COARSE, seed=1), few, found, "bfloat16").fault
    exact = FakeModel(lambda token: change(token) + rounding(token), EXACT, 2)
    assert "PEFT reference" in judge(FakeModel(noise=EXACT, seed=1), exact, found, "float32").fault


def test_scaling_and_missing_parts_are_told_apart() -> None:
    change = adapter(0.3)
    doubled = judge(FakeModel(), FakeModel(lambda token: 2 * change(token)), reference(change))
    assert "200% of that in the PEFT reference" in doubled.fault
    strayed = judge(
        FakeModel(), FakeModel(lambda token: change(token) + adapter(0.1, seed=5)(token)), reference(change)
    )
    assert "missing, or in another place" in strayed.fault


@pytest.mark.parametrize(("precision", "gap"), [("float32", 0.05), ("bfloat16", 0.5), ("quantized", 2.0)])
def test_a_base_that_answers_otherwise_is_a_fault_of_the_base(precision: str, gap: float) -> None:
    """As where the reference was recorded on a base in 4 bits."""
    change = adapter(0.3)
    noise = gap / math.sqrt(2 / math.pi)
    proof = judge(FakeModel(noise=noise, seed=1), FakeModel(change, noise, 2), reference(change), precision)
    assert "the base here differs from the base in the reference" in proof.fault


def test_the_same_gap_is_no_fault_where_the_base_is_served_in_few_bits() -> None:
    change = adapter(1.0)
    proof = judge(FakeModel(noise=0.5, seed=1), FakeModel(change, 0.5, 2), reference(change), "quantized")
    assert not proof.fault


@pytest.mark.parametrize(("noise", "fault"), [(EXACT, True), (COARSE, False)])
def test_another_greedy_choice_is_a_fault_where_rounding_does_not_explain_it(noise: float, fault: bool) -> None:
    change = adapter(0.3)
    served = FakeModel(change, noise, 2)
    served.ranks[PROMPTS[0][-1]] = 2
    proof = judge(FakeModel(noise=noise, seed=1), served, reference(change, margin=0.1))
    assert bool(proof.fault) == fault
    assert not fault or "a margin of 0.1 nats" in proof.fault


def test_a_rank_in_the_prompt_says_nothing() -> None:
    change = adapter(0.3)
    served = FakeModel(change)
    served.ranks[PROMPTS[0][1]] = 500
    assert not judge(FakeModel(), served, reference(change)).fault


def test_the_figures_are_those_of_the_verdict() -> None:
    change = adapter(0.3)
    figures = judge(FakeModel(noise=COARSE, seed=1), FakeModel(change, COARSE, 2), reference(change)).figures
    assert figures["size"] == pytest.approx(1, abs=0.1)
    assert figures["gap"] == pytest.approx(figures["base_gap"], rel=0.5)
    assert figures.keys() == {"effect", "noise", "gap", "base_gap", "size", "doubt"}
    assert judge(FakeModel(), FakeModel(change)).figures.keys() == {"effect", "noise"}
