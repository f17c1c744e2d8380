"""The traffic: several clients without a pause, in a process of their own, so that no flip holds them up."""

from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import httpx

from benchmarks.flip.servers import KEY

PROMPTS = (
    "The keeper of the lighthouse wrote in his diary:",
    "To bake a loaf of bread you need",
    "The capital of France is",
    "Dear customer, thank you for your message. We",
    "Write a short poem about the winter in the mountains.",
    "def fibonacci(n):",
)
_RETRY_SECONDS = 0.5
"""How long a client waits after a failure, so that a server that is down is not counted a thousand times."""


_WARM_ANSWERS = 2
"""Of each client, before the first flip."""
_LONGEST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: always greedy, and of as many tokens as every other."""

    target: str
    chat: bool
    prompt: int
    stream: bool

    @property
    def words(self) -> tuple[bool, int]:
        """What the words of an answer depend on, beside the version."""
        return self.chat, self.prompt


@dataclass(slots=True)
class Answer:
    """What came back; times are seconds since the epoch, of one machine's clock."""

    ask: Ask
    sent: float
    models: list[str] = field(default_factory=list)
    """As each chunk named it, or the whole answer."""
    header: str = ""
    text: str = ""
    chunks: list[float] = field(default_factory=list)
    """When each chunk of a stream came."""
    first: float = 0.0
    """When the first words came; the end for an answer in one piece."""
    ended: float = 0.0
    margin: float = 0.0
    """Nats between the two best tokens where they were nearest; only with `margins`."""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """What the clients do."""

    url: str
    targets: tuple[str, ...]
    questions: tuple[tuple[bool, int], ...]
    """What is asked: whether as a chat, and which prompt."""
    clients: int
    tokens: int


def asks(job: Job, turn: int) -> Ask:
    """The request of a turn: every target meets every way of asking, and every question in time."""
    ways = [[question for question in job.questions if question[0] is chat] for chat in (True, False)]
    several = ways[turn % 2]
    return Ask(job.targets[turn % len(job.targets)], *several[turn // 4 % len(several)], stream=turn // 2 % 2 == 0)


class Traffic:
    """Clients that ask for as long as `traffic` is open."""

    def __init__(self, answered: Any) -> None:
        self._answered = answered
        self.answers: list[Answer] = []
        """All of them, once it is closed."""

    def go_on(self, seconds: float, answers: int) -> None:
        """Return when that much time has passed and that many more answers have come; a minute later at most."""
        enough, began = self._answered.value + answers, time.monotonic()
        while time.monotonic() < began + seconds or (
            self._answered.value < enough and time.monotonic() < began + seconds + _LONGEST_SECONDS
        ):
            time.sleep(0.05)


@contextmanager
def traffic(job: Job) -> Iterator[Traffic]:
    """Keep the clients asking while the block runs, warm from the start."""
    context = multiprocessing.get_context("spawn")
    stop, answered = context.Event(), context.Value("i")
    ours, theirs = context.Pipe()
    process = context.Process(target=_process, args=(job, stop, answered, theirs), daemon=True)
    process.start()
    running = Traffic(answered)
    try:
        running.go_on(0, _WARM_ANSWERS * job.clients)
        yield running
    finally:
        stop.set()
        running.answers = ours.recv()
        process.join()


def _process(job: Job, stop: Any, answered: Any, results: Connection) -> None:
    answers: list[Answer] = []
    asyncio.run(_clients(job, stop, answered, answers))
    results.send(answers)


async def _clients(job: Job, stop: Any, answered: Any, answers: list[Answer]) -> None:
    async def client(turn: int) -> None:
        while not stop.is_set():
            answers.append(await ask(http, asks(job, turn), job.tokens))
            answered.value = len(answers)
            if answers[-1].error:
                await asyncio.sleep(_RETRY_SECONDS)
            turn += 1

    async with connection(job.url) as http, asyncio.TaskGroup() as group:
        for number in range(job.clients):
            group.create_task(client(5 * number))


def connection(url: str) -> httpx.AsyncClient:
    """An HTTP client that waits long, and opens as many connections as there are requests."""
    return httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=180)


async def ask(http: httpx.AsyncClient, what: Ask, tokens: int, *, model: str = "", margins: bool = False) -> Answer:
    """Send one request to `model`, by default its target, and read all of the answer; an error is in the answer."""
    prompt = PROMPTS[what.prompt]
    body: dict[str, Any] = {
        "model": model or what.target,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": what.stream,
        **({"messages": [{"role": "user", "content": prompt}]} if what.chat else {"prompt": prompt}),
    }
    if margins:
        body |= {"logprobs": True, "top_logprobs": 2} if what.chat else {"logprobs": 2}
    answer = Answer(what, time.time())
    try:
        path = "/v1/chat/completions" if what.chat else "/v1/completions"
        async with http.stream("POST", path, json=body) as reply:
            answer.header = reply.headers.get("x-loradock-version", "")
            if reply.status_code != httpx.codes.OK:
                answer.error = f"{reply.status_code}: {(await reply.aread()).decode(errors='replace')[:300]}"
            elif what.stream:
                await _read_stream(reply, answer)
            else:
                _take(json.loads(await reply.aread()), answer)
    except (httpx.HTTPError, ValueError, KeyError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    answer.ended = time.time()
    answer.first = answer.first or answer.ended
    return answer


async def _read_stream(reply: httpx.Response, answer: Answer) -> None:
    finish = False
    async for line in reply.aiter_lines():
        data = line.removeprefix("data: ")
        if data == line:
            continue
        if data == "[DONE]":
            answer.error = "" if finish else "the stream ended without a reason"
            return
        before = answer.text
        finish = _take(json.loads(data), answer) or finish
        answer.chunks.append(time.time())
        if answer.text != before and not answer.first:
            answer.first = answer.chunks[-1]
    answer.error = answer.error or "the stream was cut off"


def _take(body: dict[str, Any], answer: Answer) -> bool:
    """Add a chunk or a whole answer; True when it says why the model stopped. Raises KeyError for an error's body."""
    if "error" in body:
        raise ValueError(str(body["error"])[:300])
    answer.models.append(body["model"])
    finish = False
    for choice in body["choices"]:
        part = choice.get("delta") or choice.get("message") or choice
        answer.text += part.get("content") or part.get("text") or ""
        finish = finish or bool(choice.get("finish_reason"))
        if choice.get("logprobs"):
            answer.margin = _margin(choice["logprobs"])
    return finish


def _margin(logprobs: dict[str, Any]) -> float:
    if "content" in logprobs:
        best = [[entry["logprob"] for entry in token["top_logprobs"]] for token in logprobs["content"]]
    else:
        best = [list(token.values()) for token in logprobs["top_logprobs"]]
    pairs = [sorted(values, reverse=True) for values in best if len(values) > 1]
    return min((float(values[0] - values[1]) for values in pairs), default=math.inf)
