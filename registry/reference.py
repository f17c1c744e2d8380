"""What PEFT says with an adapter on its base: what a replica's own answers are held against before it serves it.

It is a property of an adapter's bytes and a base's, so every version with these bytes shares it, whatever its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from loradock.registry.evidence import Number
from loradock.registry.records import Base, Record

PROMPTS: Final = (
    (
        "The committee met on Tuesday to decide whether the old bridge should be repaired or replaced. The engineers "
        "had warned that another hard winter could close it for good, and"
    ),
    (
        "User: How do I reset my password?\nAssistant: Open the settings page, choose Security, and then click the "
        "link below the field. A mail will reach you within a few"
    ),
    (
        "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n"
        "    return total / len(values)\n"
    ),
    '{"name": "Ada", "city": "London", "orders": [{"id": 17, "total": 42.5}, {"id": 18, "total":',
)
"""Prose, dialogue, code and data: an adapter that was trained on any of them shows."""
ANSWER: Final = 16
"""Tokens of each greedy answer."""

Token = Annotated[int, Field(ge=0)]


class Probe(Record):
    """One prompt, the adapter's greedy answer to it, and what each token of both is worth."""

    prompt: Annotated[tuple[Token, ...], Field(min_length=1)]
    """Token ids, as the base's tokenizer gives them."""
    answer: tuple[Token, ...]
    """Token ids; an end-of-text token does not end it."""
    adapted: tuple[Number, ...]
    """The log-probability, in nats, of each token of prompt and answer but the first, with the adapter."""
    bare: tuple[Number, ...]
    """The same tokens' by the base alone."""
    margins: tuple[Number, ...]
    """By how much, in nats, each token of the answer is above the runner-up."""

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        known = len(self.tokens) - 1
        if (len(self.adapted), len(self.bare), len(self.margins)) != (known, known, len(self.answer)):
            raise ValueError(f"{known + 1} tokens need {known} log-probabilities, and each of the answer a margin")
        return self

    @property
    def tokens(self) -> tuple[int, ...]:
        """Prompt and answer."""
        return self.prompt + self.answer


class Reference(Record):
    """One adapter's probes on one base in full precision, by transformers and PEFT."""

    adapter: str
    """The adapter's digest."""
    base: str
    """The base's weights digest."""
    config: str
    """The base's config digest."""
    dtype: Literal["float32"] = "float32"
    software: Mapping[str, str]
    """The versions of the libraries that said it."""
    at: datetime
    probes: Annotated[tuple[Probe, ...], Field(min_length=1)]

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical record, 64 hex digits."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def is_of(self, adapter: str, base: Base) -> bool:
        """Whether it was recorded for an adapter of this digest on this base."""
        return (self.adapter, self.base, self.config) == (adapter, base.weights_digest, base.config_digest)
