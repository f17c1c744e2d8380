"""Adapters that vLLM cannot serve, converted and promoted, answer on the endpoint as PEFT does with the originals."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from loradock.registry import promotion, versions
from loradock.registry.base import LocalBase
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.trainer.generation import generate
from loradock.trainer.weights import convert
from loradock.trainer.weights.convert import Task
from tests.support.serving.server import START_SECONDS, Server, serving
from tests.support.trainer.training import trained, written

pytestmark = pytest.mark.slow

METHODS = {
    # its settings, and a rate at which a few steps are enough to hear
    "adalora": ({"target_r": 8}, 1e-1),
    "loha": ({"r": 4}, 3e-2),
    "dora": ({"r": 8}, 5e-3),
}
TARGETS = ["q_proj", "v_proj"]
NEW_TOKENS = 16
SUBJECTS = ("the sea", "a lighthouse", "bread", "winter", "the moon", "a train", "gold", "tea", "a violin", "rain")
QUESTIONS = [
    *(f"What is {number}?" for number in range(100, 120)),
    *(f"What is {subject}?" for subject in SUBJECTS),
    *(f"Tell me about {subject}." for subject in SUBJECTS),
    *(f"Where do I find {subject}?" for subject in SUBJECTS),
]


def greedy(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]]) -> list[str]:
    return [text for at in range(0, 50, 25) for text in generate(model, tokenizer, prompts[at : at + 25], NEW_TOKENS)]


def test_converted_adapters_answer_as_the_originals_do(
    base: LocalBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(home=tmp_path / "home")
    store = Store(settings)
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)["input_ids"]
        for text in QUESTIONS
    ]
    bare = greedy(AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32), tokenizer, prompts)
    originals = {method: made(method, settings, store, base, tmp_path, prompts) for method in METHODS}
    found: dict[str, tuple[float, float]] = {}
    with serving(settings.home, base, store, tmp_path, settings={}) as server:
        server.until(lambda status: status["ready"], START_SECONDS)
        for method, answers in originals.items():
            served = asked(server, f"{method}-lora", prompts)
            found[method] = agreement(answers, served), agreement(bare, answers)
    with capsys.disabled():
        for method, (same, unchanged) in found.items():
            sys.stdout.write(f"\n{method}: {same:.0%} of 50 answers as PEFT's, {unchanged:.0%} as the base's\n")
    assert all(unchanged <= 0.7 for _, unchanged in found.values())
    assert min(found["adalora"][0], found["loha"][0]) >= 0.96  # they are converted exactly
    assert found["dora"][0] >= 0.8


def made(
    method: str, settings: Settings, store: Store, base: LocalBase, tmp_path: Path, prompts: Sequence[Sequence[int]]
) -> list[str]:
    """Train, register, convert and promote one; what PEFT answers with the original."""
    said, rate = METHODS[method]
    directory = tmp_path / method
    directory.mkdir()
    source, rows = written(
        directory,
        base.path,
        rows=10,
        method={"type": method, "target_modules": TARGETS, **said},
        training={"max_steps": 6, "learning_rate": rate, "logging_steps": 3, "dtype": "float32"},
    )
    outcome = trained(source, rows, settings)
    version = versions.register(store, outcome.run_id, method)
    assert version.findings
    converted = convert.convert(Task(version.ref, base=str(base.path)), settings, lambda _: None)
    made = store.find_version(f"{method}-lora", converted.digest)
    assert made
    promotion.promote(store, made.ref, "production", actor="tester")
    with versions.fetched(store, version) as adapter, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on how it keeps AdaLoRA's ranks
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32), adapter)
        return greedy(model.eval(), AutoTokenizer.from_pretrained(base.path), prompts)


def asked(server: Server, model: str, prompts: Sequence[Sequence[int]]) -> list[str]:
    """The endpoint's greedy answers, sixteen requests at a time."""

    with server.client as client, ThreadPoolExecutor(16) as pool:

        def one(prompt: Sequence[int]) -> str:
            answer = client.completions.create(model=model, prompt=list(prompt), max_tokens=NEW_TOKENS, temperature=0)
            assert answer.model.partition("/")[0] == model
            return answer.choices[0].text

        return list(pool.map(one, prompts))


def agreement(one: Sequence[str], other: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)
