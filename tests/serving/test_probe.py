"""The verdict on a version's effect, on engines whose outputs are made up."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence

import pytest

from serving.probe import Effect, Measure, Prober


class Model:
    """Answers each prompt with log-probabilities that are the base's, shifted, and blurred by rounding."""

    def __init__(self, shift: float = 0.0, noise: float = 0.0, seed: int = 0) -> None:
        self.shift, self.noise, self.random, self.asked = shift, noise, random.Random(seed), 0  # noqa: S311

    async def __call__(self, prompt: str) -> Sequence[float]:
        self.asked += 1
        true = random.Random(prompt)  # noqa: S311
        return [-3 * true.random() + self.shift + self.random.gauss(0, self.noise) for _ in range(25)]


def judge(base: Measure, version: Measure) -> Effect:
    return asyncio.run(Prober(base).effect(version))


@pytest.mark.parametrize("noise", [0.0, 1e-6, 0.02])
@pytest.mark.parametrize("seed", range(10))
def test_an_adapter_without_effect_is_told_from_rounding(noise: float, seed: int) -> None:
    assert "no effect" in judge(Model(noise=noise, seed=seed), Model(noise=noise, seed=seed + 100)).fault


@pytest.mark.parametrize(("shift", "noise"), [(1e-3, 0.0), (1e-3, 1e-6), (0.05, 0.01), (2.0, 0.02)])
def test_a_subtle_adapter_passes_where_its_effect_exceeds_rounding(shift: float, noise: float) -> None:
    assert not judge(Model(noise=noise, seed=1), Model(shift, noise, seed=2)).fault


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_output_that_is_no_number_is_a_fault(value: float) -> None:
    async def broken(_: str) -> Sequence[float]:
        return [value] * 25

    assert judge(Model(), broken).fault == "its output is not a number"


def test_an_answer_of_another_length_is_a_fault() -> None:
    async def short(_: str) -> Sequence[float]:
        return [-1.0]

    assert judge(Model(), short).fault


def test_a_clear_effect_takes_one_pass_and_the_base_is_measured_once() -> None:
    base, prober_asked = Model(), []
    prober = Prober(base)

    async def several() -> None:
        for seed in range(3):
            version = Model(1.0, seed=seed)
            await prober.effect(version)
            prober_asked.append(version.asked)

    asyncio.run(several())
    assert (base.asked, prober_asked) == (4, [4, 4, 4])
