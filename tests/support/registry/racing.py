"""Promoters that race for one alias: processes of their own, some of which are killed on the way.

They are forked from one that has imported MLflow, which takes seconds, but has opened no store.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Barrier
from typing import Any

from loradock.registry import history, promotion
from loradock.registry.errors import Conflict, LoradockError
from loradock.registry.refs import VersionRef
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support.shell import processes

ALIAS = "production"
LONGEST = 300.0  # seconds


@dataclass(frozen=True, slots=True)
class Racer:
    """One promoter: which version it moves the alias to, how often, and when it dies."""

    number: int
    rounds: int = 1
    expect: int | None = None
    together: bool = False
    """It writes its first move in the same moment as the others, who decided on the same state."""
    dies_at: int | None = None
    """It is killed at its n-th call to MLflow, counted from 0."""
    after: bool = False
    """Just after that call, not just before."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a promoter was told of one promotion."""

    number: int
    seconds: float
    nonce: str = ""
    """Of the move that it made."""
    winner: str = ""
    """Whom the conflict named."""
    exit_code: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A race when all have finished or died, and the history then."""

    attempts: tuple[Attempt, ...]
    killed: int
    before: int
    """How many entries the history had before."""
    past: history.History

    @property
    def won(self) -> tuple[Attempt, ...]:
        """Moves that their promoters were told of."""
        return tuple(attempt for attempt in self.attempts if attempt.nonce)

    @property
    def lost(self) -> tuple[Attempt, ...]:
        """Conflicts that named the winner."""
        return tuple(a for a in self.attempts if a.exit_code == 4 and a.winner.startswith("promoter "))

    @property
    def broken(self) -> tuple[Attempt, ...]:
        """Whatever is neither of these, nor a promotion to where the alias stood already."""
        return tuple(a for a in self.attempts if a.exit_code and a not in self.lost)

    @property
    def missing(self) -> int:
        """Moves that their promoters were told of and history does not hold exactly once."""
        written = [move.nonce for move in self.past.moves]
        return sum(written.count(attempt.nonce) != 1 for attempt in self.won)

    @property
    def untold(self) -> int:
        """Moves in the history that no promoter was told of, for it died before."""
        return len(self.past.moves) - self.before - len(self.won)

    @property
    def replays(self) -> bool:
        """Whether every alias is where history ends."""
        past = self.past
        return not past.drifts and past.family.aliases == {alias: move.to_version for alias, move in past.heads.items()}


def race(settings: Settings, name: str, racers: Sequence[Racer]) -> Outcome:
    """Let them race, and read the history when the last has finished or died."""
    context = processes()
    start, before = context.Barrier(len(racers)), history.read(Store(settings), name).end
    lines: list[Connection] = []
    started = []
    for racer in racers:
        line, end = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(settings, name, racer, start, end))
        process.start()
        end.close()
        lines.append(line)
        started.append(process)
    attempts = tuple(_received(lines))
    for process in started:
        process.join(LONGEST)
    killed = sum(process.exitcode == -signal.SIGKILL for process in started)
    return Outcome(attempts, killed, before, history.read(Store(settings), name))


def _received(lines: list[Connection]) -> Any:
    deadline = time.monotonic() + LONGEST
    while lines:
        ready = wait(lines, timeout=deadline - time.monotonic())
        if not ready:
            raise TimeoutError(f"{len(lines)} promoters have not finished")
        for line in ready:
            assert isinstance(line, Connection)
            try:
                yield line.recv()
            except EOFError:
                lines.remove(line)


def _run(settings: Settings, name: str, racer: Racer, start: Barrier, out: Connection) -> None:
    store = Store(settings)
    store.family(name)  # the first call makes the connection
    start.wait(LONGEST)
    store.client = _RacingClient(store.client, racer, start)
    for _ in range(racer.rounds):
        out.send(_attempt(store, name, racer))


def _attempt(store: Store, name: str, racer: Racer) -> Attempt:
    began = time.perf_counter()
    ref, told = VersionRef(name, racer.number), {}
    try:
        move = promotion.promote(store, ref, ALIAS, actor=f"promoter {racer.number}", expect=racer.expect)
        told = {"nonce": move.nonce} if move else {}
    except Conflict as error:
        told = {"winner": error.winner, "exit_code": error.exit_code, "error": str(error)}
    except LoradockError as error:
        told = {"exit_code": error.exit_code, "error": f"{error} ({error.__cause__!r})"}
    return Attempt(racer.number, time.perf_counter() - began, **told)


class _RacingClient:
    """An MLflow client whose owner dies at one of its calls, or waits for all others before its first write."""

    def __init__(self, client: Any, racer: Racer, start: Barrier) -> None:
        self._client, self._racer, self._start = client, racer, start
        self._calls = 0
        self._waits = racer.together

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        def watched(*args: Any, **options: Any) -> Any:
            if self._waits and name == "log_param":
                self._waits = False
                self._start.wait(LONGEST)
            dies = self._calls == self._racer.dies_at
            self._calls += 1
            if dies and not self._racer.after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*args, **options)
            finally:  # also after a write that another came before
                if dies:
                    os.kill(os.getpid(), signal.SIGKILL)

        return watched
