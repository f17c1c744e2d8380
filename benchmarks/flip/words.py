"""Every version's own words: what it says to each prompt when no other is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.flip.adapters import Cast
from benchmarks.flip.load import PROMPTS, Answer, Ask, ask, connection
from benchmarks.flip.servers import Server

CLEAR = 5e-4
"""Nats that the best token has to lead by; rounding in float32 moves a log-probability by a tenth of that."""

QUESTIONS = tuple((chat, prompt) for chat in (False, True) for prompt in range(len(PROMPTS)))
Said = Mapping[tuple[bool, int], str]
"""One version's words by what was asked."""


@dataclass(frozen=True, slots=True)
class Words:
    """What every version and the base say when they are asked alone."""

    of: Mapping[str, Said]
    """By the version's ref, or the base's name."""
    telling: tuple[tuple[bool, int], ...]
    """Questions to which no two say the same, and no token is nearly tied: only these are asked under load."""
    margin: float
    """The least lead of a best token in the answers to those, in nats."""

    def owners(self, what: Ask, text: str) -> frozenset[str]:
        """Who says `text` to this."""
        return frozenset(who for who, said in self.of.items() if said[what.words] == text)


@dataclass(frozen=True, slots=True)
class Alone:
    """One version's words, and the least lead of a best token in each answer, in nats."""

    said: Said
    margins: Mapping[tuple[bool, int], float]


def alone(server: Server, who: str, model: str, tokens: int) -> Alone:
    """Ask one model each question, all of them together: nothing but this model is in the batch."""

    async def questions() -> list[Answer]:
        async with connection(server.url) as http:
            each = [Ask(who, *question, stream=False) for question in QUESTIONS]
            return await asyncio.gather(*(ask(http, what, tokens, model=model, margins=True) for what in each))

    answers = asyncio.run(questions())
    for answer in answers:
        if answer.error:
            raise RuntimeError(f"{who} asked alone: {answer.error}")
    return Alone({one.ask.words: one.text for one in answers}, {one.ask.words: one.margin for one in answers})


def learn(server: Server, cast: Cast, base: str, tokens: int) -> Words:
    """Load each version into a vLLM under a name of its own and ask it alone.

    Raises ValueError where too few words could tell who answered.
    """
    found = {base: alone(server, base, base, tokens)}
    every = [made for several in cast.values() for made in several]
    with server.http() as http:
        for made in every:
            name = f"alone-{made.name}-{made.number}"
            body = {"lora_name": name, "lora_path": str(made.directory)}
            http.post("/v1/load_lora_adapter", json=body).raise_for_status()
            found[str(made)] = alone(server, str(made), name, tokens)
            http.post("/v1/unload_lora_adapter", json={"lora_name": name}).raise_for_status()
    # One without effect says what the base says; of a damaged one only the words count, not how sure it is of them.
    distinct = [found[who] for who in (base, *(str(made) for made in every if made.kind != "no effect"))]
    sure = [found[who] for who in (base, *(str(made) for made in every if made.kind == "good"))]
    margins = {question: min(one.margins[question] for one in sure) for question in QUESTIONS}
    telling = tuple(
        question
        for question in QUESTIONS
        if len({one.said[question] for one in distinct}) == len(distinct) and margins[question] >= CLEAR
    )
    if len({chat for chat, _ in telling}) < 2:
        raise ValueError(f"words tell versions apart only for {telling} (least leads: {margins}): another --seed")
    return Words({who: one.said for who, one in found.items()}, telling, min(margins[one] for one in telling))
