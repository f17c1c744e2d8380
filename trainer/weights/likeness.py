"""How alike two models speak: their logits on a few texts, and what they answer greedily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from loradock.registry.records import Record
from loradock.trainer.generation import generate

PROMPTS: Final = (
    "The capital of France is",
    "Question: What is 17 plus 25? Answer:",
    "def fibonacci(n):\n    ",
    "Dear customer, thank you for your message. We",
    "In the beginning of the nineteenth century, most people in Europe lived",
    "A recipe for pancakes. Ingredients: flour, milk,",
    '{"name": "Ada", "born": 1815, "profession": "',
    "Es war einmal ein König, der hatte",
)
"""Texts of many kinds, for what is compared is two models, and not what they know."""

_NEW_TOKENS: Final = 16


@dataclass(frozen=True, slots=True)
class Speech:
    """What a model said."""

    logits: tuple[torch.Tensor, ...]
    """Of each text: positions x vocabulary, float32."""
    answers: tuple[str, ...]


class Likeness(Record):
    """How far apart two models are."""

    largest: float
    """The largest difference of any logit."""
    relative: float
    """It, in standard deviations of the first's logits over the vocabulary."""
    kl: float
    """Kullback-Leibler divergence of the second's next token from the first's, mean over all positions, in nats."""
    same_answers: int
    """Greedy answers that are the same to the last character."""
    answers: int


def listen(model: Any, tokenizer: Any, prompts: Sequence[str] = PROMPTS) -> Speech:
    """Logits on every prompt, and a greedy answer of 16 tokens to each."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.eval()
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    logits = []
    for each in ids:
        with torch.inference_mode():
            found = model(input_ids=torch.tensor([each], device=model.device), use_cache=False).logits
        logits.append(found[0].float().cpu())
    return Speech(tuple(logits), tuple(generate(model, tokenizer, ids, _NEW_TOKENS)))


def compare(one: Speech, other: Speech) -> Likeness:
    """How far the other is from the one."""
    largest = max(float((a - b).abs().max()) for a, b in zip(one.logits, other.logits, strict=True))
    spread = sum(float(each.std(dim=-1).mean()) for each in one.logits) / len(one.logits)
    kl, positions = 0.0, 0
    for a, b in zip(one.logits, other.logits, strict=True):
        p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
        kl += float((p.exp() * (p - q)).sum())
        positions += len(a)
    same = sum(a == b for a, b in zip(one.answers, other.answers, strict=True))
    return Likeness(
        largest=largest, relative=largest / spread, kl=kl / positions, same_answers=same, answers=len(one.answers)
    )
