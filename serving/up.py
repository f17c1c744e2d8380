"""MLflow's UI and a serving replica on this machine's embedded store, started and ended together.

Each part is a process in a session of its own, so that a Ctrl-C reaches this one alone, and whatever a part has started
is ended with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

from loradock.registry import base as bases
from loradock.registry.errors import BadInput, LoradockError, NotFound, Unreachable
from loradock.registry.replica_client import ReplicaClient
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.serving.desired import Promoted, Source
from loradock.serving.launch import check_address, check_extra
from loradock.serving.settings import ServingSettings

HOST: Final = "127.0.0.1"
UI: Final = "MLflow's UI"
REPLICA: Final = "the replica"
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STEP: Final = 0.1  # seconds between two looks at the parts
_LOOK: Final = 2.0  # seconds that one look may take
_GRACE: Final = 30.0  # seconds until a part that was told to end is killed; a replica has its `stop_seconds` more
_REST: Final = 5.0  # seconds for what a part had started and left behind
_LAST_LINES: Final = 12


@dataclass(frozen=True, slots=True)
class Wish:
    """What `loradock up` was asked for."""

    base: str | None
    """The base to serve; None for that of what is promoted."""
    port: int
    ui_port: int
    serve: bool = True
    extra: tuple[str, ...] = ()
    """Arguments for vLLM, as they are."""


@dataclass(frozen=True, slots=True)
class Part:
    """A process to run, before it runs."""

    name: str
    command: tuple[str, ...]
    url: str
    probe: str
    """The path that answers once the part does."""
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    grace: float = _GRACE


@dataclass(frozen=True, slots=True)
class Running:
    """A part and its process."""

    part: Part
    process: subprocess.Popen[bytes]


def plan(wish: Wish, settings: Settings) -> tuple[Part, ...]:
    """The parts to start; raises BadInput where one cannot be, before any is."""
    if settings.tracking_uri:
        raise BadInput(
            "`up` is for the embedded store, and MLFLOW_TRACKING_URI names another",
            hint="unset it, or serve from there: loradock serve --base BASE",
        )
    check_extra(wish.extra)
    ports = {"--ui-port": wish.ui_port} | ({"--port": wish.port} if wish.serve else {})
    if len(set(ports.values())) < len(ports):
        raise BadInput(f"--port and --ui-port are both {wish.port}", hint="choose two")
    for option, port in ports.items():
        try:
            check_address(HOST, port)
        except BadInput as error:
            error.hint = f"stop what listens there, or choose another {option}"
            raise
    Store(settings)  # makes a new store's tables, once, before two processes would
    logs = settings.root / "logs"
    parts = [_ui(wish.ui_port, settings, logs)]
    if wish.serve and (base := wish.base or base_of(Source(settings).read().promoted)):
        try:
            bases.config_of(base, settings)
        except NotFound as error:
            error.hint = error.hint if wish.base else "what is promoted was trained on it: name it with --base"
            raise
        parts.append(_replica(base, wish, logs))
    return tuple(parts)


def base_of(promoted: Promoted) -> str:
    """The base that all promoted versions were trained on, empty where none is; raises BadInput for several."""
    trained_on = {version.facts.base for version in promoted.versions.values()}
    found = sorted({f"{base.id}@{base.revision}" if base.revision else base.id for base in trained_on})
    if len(found) > 1:
        raise BadInput("what is promoted was trained on several bases", problems=found, hint="choose one with --base")
    return "".join(found)


def _ui(port: int, settings: Settings, logs: Path) -> Part:
    command = (
        *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", settings.store_uri, "--artifacts-destination", str(settings.artifacts)),
    )
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    safe = {"PYTHONSAFEPATH": "1"}  # it and its workers import nothing that lies where `up` is called
    return Part(UI, command, f"http://{HOST}:{port}", "/health", logs / f"mlflow-{port}.log", quiet | safe)


def _replica(base: str, wish: Wish, logs: Path) -> Part:
    command = (
        *(sys.executable, "-P", "-m", "loradock", "serve", "--base", base, "--host", HOST, "--port", str(wish.port)),
        *("--", *wish.extra),
    )
    log, grace = logs / f"serve-{wish.port}.log", ServingSettings().stop_seconds + _GRACE
    return Part(REPLICA, command, f"http://{HOST}:{wish.port}", "/loradock/ready", log, grace=grace)


def run(parts: Sequence[Part], told: Callable[[Part], None]) -> None:
    """Run the parts until a signal; each is `told` once it answers.

    Raises LoradockError when a part ends by itself: the others are ended then, and the error has its last lines.
    """
    with _signals() as stopping, contextlib.ExitStack() as stack:
        running = [stack.enter_context(_started(part, stopping)) for part in parts]
        waiting = list(running)
        while not stopping:
            for one in running:
                if (code := one.process.poll()) is not None:
                    raise _ended(one.part, code)
            for one in [one for one in waiting if _answers(one.part)]:
                waiting.remove(one)
                told(one.part)
            time.sleep(_STEP)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that came, while they do nothing else."""
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _started(part: Part, stopping: Sequence[int]) -> Iterator[Running]:
    part.log.parent.mkdir(parents=True, exist_ok=True)
    with part.log.open("wb") as log:
        process = subprocess.Popen(
            part.command,
            env=os.environ | part.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Running(part, process)
    finally:
        _stop(process, part.grace, stopping)


def _stop(process: subprocess.Popen[bytes], grace: float, stopping: Sequence[int]) -> None:
    """Tell it to end, wait for its requests in flight, and end whatever is left; a second signal cuts the wait."""
    signals = len(stopping)
    if process.poll() is None:
        process.terminate()
    _until(lambda: process.poll() is not None or len(stopping) > signals, grace)
    if process.poll() is not None and _signalled(process.pid, signal.SIGTERM):
        _until(lambda: not _signalled(process.pid, 0), _REST)
    killed = _signalled(process.pid, signal.SIGKILL)
    process.wait()
    if killed:
        _until(lambda: not _signalled(process.pid, 0), _REST)


def _signalled(group: int, number: int) -> bool:
    """Send a signal to a process group; whether there is one."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _until(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(_STEP / 2)


def _answers(part: Part) -> bool:
    """Whether anything comes back over HTTP; one with a quarantined version answers 503, and serves others."""
    try:
        ReplicaClient(part.url, seconds=_LOOK).send("GET", part.probe)
    except Unreachable:
        return False
    return True


def waiting_for(part: Part) -> list[str]:
    """The names whose promoted version a replica does not answer with yet."""
    return ReplicaClient(part.url, seconds=_LOOK).waiting()


def _ended(part: Part, code: int) -> LoradockError:
    how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
    error = LoradockError(f"{part.name} ended {how}, and the rest was stopped", hint=f"its full log is {part.log}")
    lines = part.log.read_text(encoding="utf-8", errors="replace").splitlines()
    error.problems = tuple(line for line in lines if line.strip())[-_LAST_LINES:]
    return error
