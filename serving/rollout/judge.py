"""A judge of the user's own: a function that says how good an answer is, asked on prompts of the user's."""

from __future__ import annotations

import json
import math
import random
import re
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from loradock.registry import functions
from loradock.registry.errors import BadInput, LoradockError, first_line
from loradock.registry.outside import printable
from loradock.registry.refs import CANARY, PRODUCTION, VersionRef
from loradock.registry.replica_client import NoAnswer, ReplicaClient
from loradock.serving.front import VERSION_HEADER

_FUNCTION: Final = re.compile(r"(?P<file>.+\.py):(?P<function>[A-Za-z_]\w*)")
_TIMEOUT: Final = 600.0  # seconds, for one answer
_PAUSE: Final = 1.0  # seconds, after a replica did not answer, or not with the version that is asked for
_DEFAULTS: Final = {"max_tokens": 256, "temperature": 0}

Judging = Callable[[Any, str], float]
"""Of a prompt, or its messages, and the answer: from 0, bad, to 1, good; or True and False."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is judged, and by what."""

    judging: Judging
    prompts: Sequence[Mapping[str, Any]]
    """Bodies of requests, without a model."""


def load(function: str, prompts: Path) -> Case:
    """A judge as the command line names it, FILE.py:FUNCTION, and a JSONL file of prompts; raises BadInput, NotFound.

    The prompts come in a random order, the same each time: what is shown by some of them holds for such prompts.
    """
    match = _FUNCTION.fullmatch(function)
    if not match:
        raise BadInput(f"{function!r} names no judge", hint="write it FILE.py:FUNCTION")
    found = _prompts(prompts)
    random.Random(len(found)).shuffle(found)  # noqa: S311 - no secret
    path = Path(match["file"]).expanduser()
    judging = functions.load(path, match["function"], hint="a judge is written FILE.py:FUNCTION")
    return Case(judging, found)


class Judge:
    """Asks both versions the prompts, one after another and beside everything else, until it is stopped."""

    def __init__(self, case: Case, ref: VersionRef, production: int, urls: Sequence[str], api_key: SecretStr) -> None:
        self._case = case
        self._clients = [ReplicaClient(url, api_key, seconds=_TIMEOUT) for url in urls]
        self._wanted = {CANARY: str(ref), PRODUCTION: str(VersionRef(ref.name, production))}
        self._name = ref.name
        self._found: deque[tuple[float, float]] = deque()
        self._error: LoradockError | None = None
        self.problem = ""
        """Why it waits; empty while it gets its answers."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="judge")

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Ask nothing more."""
        self._stop.set()

    def take(self) -> list[tuple[float, float]]:
        """How bad each answer was since the last time, the canary's first; raises BadInput where the judge failed."""
        if self._error:
            raise self._error
        return [self._found.popleft() for _ in range(len(self._found))]

    def _run(self) -> None:
        try:
            for number, prompt in enumerate(self._case.prompts, 1):
                pair = self._both(prompt, f"prompt {number}")
                if pair is None:
                    return
                self._found.append(pair)
        except LoradockError as error:
            self._error = error

    def _both(self, prompt: Mapping[str, Any], what: str) -> tuple[float, float] | None:
        """Both answers' badness; it is asked again until both versions answer, and None where it was stopped."""
        turn = 0
        while not self._stop.is_set():
            client = self._clients[turn % len(self._clients)]
            turn += 1
            try:
                said = {alias: self._ask(client, alias, prompt) for alias in (CANARY, PRODUCTION)}
            except NoAnswer as error:
                self.problem = f"the judge gets no answer from {client.url}: {error.reason}"
                self._stop.wait(_PAUSE)
                continue
            wrong = {alias: version for alias, (version, _) in said.items() if version != self._wanted[alias]}
            self.problem = "; ".join(f"{self._name}@{alias} is answered by {wrong[alias]}" for alias in wrong)
            if not wrong:
                canary, production = (self._bad(prompt, said[alias][1], what) for alias in (CANARY, PRODUCTION))
                return canary, production
            self._stop.wait(_PAUSE)
        return None

    def _ask(self, client: ReplicaClient, alias: str, prompt: Mapping[str, Any]) -> tuple[str, str]:
        """Which version answered, and what."""
        body = {**_DEFAULTS, **prompt, "model": f"{self._name}@{alias}", "stream": False}
        path = "/v1/chat/completions" if "messages" in prompt else "/v1/completions"
        answer = client.send("POST", path, body)
        if answer.status_code in (400, 422):
            raise BadInput(f"a prompt of the judge's is refused: {printable(answer.text[:500])}")
        if answer.is_error:  # a 404 too: this replica may not serve the canary yet
            raise client.failed(answer)
        choice = client.data(answer)["choices"][0]
        text = choice["message"]["content"] if "messages" in prompt else choice["text"]
        return answer.headers.get(VERSION_HEADER, ""), text or ""

    def _bad(self, prompt: Mapping[str, Any], answer: str, what: str) -> float:
        try:
            good = float(self._case.judging(prompt.get("messages", prompt.get("prompt")), answer))
        except Exception as error:  # a user's function raises what it likes
            raise BadInput(f"the judge fails on {what}: {type(error).__name__}: {first_line(error)}") from error
        if not (math.isfinite(good) and 0 <= good <= 1):
            raise BadInput(f"the judge gives {good} for {what}", hint="give True or False, or a number from 0 to 1")
        return 1 - good


def _prompts(path: Path) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadInput(f"line {number} of {path} is no JSON") from error
        if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
            raise BadInput(f"line {number} of {path} has not one of prompt and messages")
        found.append(row)
    if not found:
        raise BadInput(f"{path} has no prompts")
    return found
