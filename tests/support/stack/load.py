"""Clients that ask an endpoint again and again, each a stream and a whole answer in turn, and what they see."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import openai

from tests.support.clients import at_work

TOKENS = 12
PROMPT = "Where is my parcel?"
LONGEST = 120.0  # seconds


@dataclass(frozen=True, slots=True)
class Seen:
    """One request, as its client saw it."""

    began: float
    ended: float
    model: str = ""
    """The version that answered; empty where none did, or not to the end."""
    error: str = ""


@dataclass
class Load:
    """Clients at work, and what they have seen so far."""

    url: str
    key: str
    model: str
    clients: int = 4
    pause: float = 0.1
    """Seconds between an answer and the next request of its client."""
    seen: list[Seen] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    began: float = field(default_factory=time.monotonic)

    def work(self, _number: int) -> None:
        """One client; after an error it waits a moment, and asks again."""
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=LONGEST) as client:
            number = 0
            while not self.stop.is_set():
                number += 1
                began = time.monotonic()
                try:
                    model = self._streamed(client) if number % 2 else self._whole(client)
                    self.seen.append(Seen(began, time.monotonic(), model))
                    self.stop.wait(self.pause)
                except Exception as error:  # noqa: BLE001 - any failure is a finding
                    self.seen.append(Seen(began, time.monotonic(), error=f"{type(error).__name__}: {error}"))
                    self.stop.wait(0.1)

    def _whole(self, client: openai.OpenAI) -> str:
        answer = client.completions.create(
            model=self.model, prompt=PROMPT, max_tokens=TOKENS, extra_body={"ignore_eos": True}
        )
        assert answer.usage
        assert answer.usage.completion_tokens == TOKENS
        return answer.model

    def _streamed(self, client: openai.OpenAI) -> str:
        chunks = client.completions.create(
            model=self.model,
            prompt=PROMPT,
            max_tokens=TOKENS,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        models, tokens = set(), 0
        for chunk in chunks:
            models.add(chunk.model)
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        assert tokens == TOKENS, f"a stream ended after {tokens} tokens"
        (model,) = models
        return str(model)

    def more(self, count: int = 12) -> None:
        """Wait until so many more requests were answered."""
        deadline, enough = time.monotonic() + LONGEST, len(self.good) + count
        while len(self.good) < enough:
            assert time.monotonic() < deadline, self.seen[-8:]
            time.sleep(0.02)

    @property
    def good(self) -> list[Seen]:
        return [seen for seen in list(self.seen) if not seen.error]

    @property
    def failed(self) -> list[Seen]:
        return [seen for seen in list(self.seen) if seen.error]

    def models(self, since: float = 0.0) -> Counter[str]:
        """Who answered what was asked since then, and how often."""
        return Counter(seen.model for seen in self.good if seen.began >= since)

    @property
    def gap(self) -> float:
        """The longest time, in seconds, without an answer to any of them."""
        ends = sorted([self.began, *(seen.ended for seen in self.good)])
        return max(after - before for before, after in pairwise(ends))

    @property
    def slowest(self) -> float:
        """The longest that one of them waited for the end of a good answer, in seconds."""
        return max(seen.ended - seen.began for seen in self.good)


@contextmanager
def load(url: str, key: str, model: str) -> Iterator[Load]:
    """Clients for as long as this lasts."""
    found = Load(url, key, model)
    with at_work(found.work, found.clients, found.stop):
        yield found
