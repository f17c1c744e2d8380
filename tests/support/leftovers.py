"""Whatever a run of the tests leaves behind ends with it, however the run ends, SIGKILL included.

All that a run starts has the run's mark in its environment. A process beside the run waits for its end, and then ends
what still has the mark. PostgreSQL overwrites its environment, and has the mark in the name of its directory.
"""

from __future__ import annotations

import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MARK = "LORADOCKTEST_RUN"
GRACE = 5.0
"""Seconds from SIGTERM to SIGKILL."""
LONGEST = 60.0
"""Seconds after which what no signal ends is left alone."""


def watch() -> subprocess.Popen[bytes]:
    """Start the process that waits for the end of this one, and mark what this one starts from now on.

    A run within a run has both marks, and ends with the outer one.
    """
    mark, quiet = secrets.token_hex(6), subprocess.DEVNULL
    command = [sys.executable, "-I", __file__, mark, str(os.getpid())]
    process = subprocess.Popen(command, cwd="/", stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    os.environ[MARK] = f"{outer}-{mark}" if (outer := os.environ.get(MARK)) else mark
    os.environ["SPT_NOENV"] = "1"  # else setproctitle, which vLLM calls, overwrites the environment that others see
    return process


def marked(mark: str) -> Iterator[int]:
    """The processes that have a mark."""
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile, or is another user's
            if mark in str((directory / "cwd").readlink()) or mark.encode() in (directory / "environ").read_bytes():
                yield int(directory.name)


def end(mark: str) -> None:
    """End what has a mark."""
    begun, told = time.monotonic(), set[int]()
    while (waited := time.monotonic() - begun) < LONGEST and (left := {*marked(mark)}):
        for pid in left if waited > GRACE else left - told:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if pid in told else signal.SIGTERM)
        told |= left
        time.sleep(0.1)


def clear(mark: str, run: int) -> None:
    """Take directories with a mark away, and let pytest do so with those of a run that was killed."""
    temporary = Path(tempfile.gettempdir())
    for directory in temporary.glob(f"*{mark}*"):
        shutil.rmtree(directory, ignore_errors=True)
    for lock in temporary.glob("pytest-of-*/pytest-*/.lock"):
        with suppress(OSError):
            if lock.read_text() == str(run):
                lock.unlink()


def main(mark: str, run: int) -> None:
    """Wait for a process to end, and end what it leaves."""
    with suppress(ProcessLookupError):
        ended = select.poll()
        ended.register(os.pidfd_open(run))
        ended.poll()
    end(mark)
    clear(mark, run)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
