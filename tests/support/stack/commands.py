"""What every step of tests/stack/run.py is made of: a command run to its end, a wait with a deadline, a clock."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[3]
HERE: Final = ROOT / "tests" / "stack"
HOME: Final = Path.home() / ".cache" / "loradock" / "stack"

steps: list[tuple[str, float]] = []


def say(line: str) -> None:
    """One line, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@contextmanager
def step(name: str) -> Iterator[None]:
    """Time what is done in it."""
    say(f"== {name}")
    started = time.monotonic()
    try:
        yield
    finally:
        steps.append((name, time.monotonic() - started))
        say(f"   {steps[-1][1]:.1f} s")


def run(*words: str | Path, timeout: float = 1800, quiet: bool = False, data: bytes | None = None) -> str:
    """Run a command to its end and return what it printed; where it fails, show that and end."""
    log = HOME / "command.log"
    with log.open("wb") as err:  # a file and no pipe: what a container's monitor inherits is never closed
        done = subprocess.run(
            words, stdout=subprocess.PIPE, stderr=err, input=data, check=False, timeout=timeout, cwd=ROOT
        )
    out = done.stdout.decode()
    if done.returncode and not quiet:
        sys.exit(f"{' '.join(map(str, words))} ended with {done.returncode}\n{out[-3000:]}\n{log.read_text()[-6000:]}")
    return out


def until(what: str | Callable[[], str], found: Callable[[], Any], *, seconds: float, alive: str = "") -> Any:
    """Poll until `found` gives something true, or end with `what` was not seen.

    `alive` is the container whose end would make waiting vain.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := found():
            return result
        if alive and run("podman", "inspect", "--format", "{{.State.Running}}", alive, quiet=True).strip() != "true":
            break
        time.sleep(0.5)
    logs = (
        subprocess.run(["podman", "logs", "--tail", "40", alive], capture_output=True, check=False) if alive else None
    )
    missed = what if isinstance(what, str) else what()
    sys.exit(f"not seen within {seconds:.0f} s: {missed}\n" + ((logs.stdout + logs.stderr).decode() if logs else ""))
