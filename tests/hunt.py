"""The tests of chance again and again, with other random numbers each time, until the time is over.

    make hunt MINUTES=30 [TESTS=tests/registry]        (or: .venv/bin/python tests/hunt.py --minutes 30 [TESTS])

A test that fails is shown with what repeats it, and left out from then on. Exits with 1 when there was one. Hypothesis
keeps its examples in `.hypothesis/`, and tries them first the next time.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTEST = (sys.executable, "-m", "pytest", "-q", "-m", "chance")


def main() -> int:
    """Hunt."""
    parser = argparse.ArgumentParser(description="Look for faults with the tests of chance.")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("tests", nargs="*", default=["tests"])
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    files, found = listed(options.tests), list[str]()
    for number, file in rounds(files):
        if (left := deadline - time.monotonic()) <= 0:
            break
        seed = secrets.randbelow(2**31)
        out = tried(file, seed, found, left)
        last = (out.splitlines() or ["interrupted"])[-1]
        print(f"{time.strftime('%H:%M:%S')}  round {number}  {file}  seed {seed}  {last}", flush=True)
        if new := re.findall(r"^(?:FAILED|ERROR) (\S+)", out, re.MULTILINE):
            found += new
            print(f"{out}\nto repeat it:  {repeated(file, seed)}\n", flush=True)
    print(f"{len(found)} found", *found, sep="\n")
    return bool(found)


def listed(tests: Sequence[str]) -> list[str]:
    """The files that hold tests of chance."""
    done = subprocess.run([*PYTEST, "--collect-only", *tests], cwd=ROOT, capture_output=True, text=True, check=False)
    files = sorted(set(re.findall(r"^(\S+\.py)::", done.stdout, re.MULTILINE)))
    return files or sys.exit(done.stdout)


def rounds(files: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Every file once a round, in any order, so that the last ones have their turn too."""
    for number in count(1):
        yield from ((number, file) for file in random.sample(files, len(files)))


def tried(file: str, seed: int, found: Sequence[str], seconds: float) -> str:
    """What pytest prints of a file; it is interrupted when the time is over."""
    words = ["--hypothesis-profile", "deep", "--hypothesis-seed", str(seed), file]
    words += [f"--deselect={test}" for test in found]
    environ = os.environ | {"LORADOCKTEST_SEED": str(seed)}
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([*PYTEST, *words], cwd=ROOT, env=environ, **how) as process:
        try:
            return process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            return process.communicate()[0]


def repeated(file: str, seed: int) -> str:
    """The command that draws the same numbers again."""
    options = f"-m chance --hypothesis-profile deep --hypothesis-seed {seed}"
    return f"LORADOCKTEST_SEED={seed} .venv/bin/python -m pytest {options} {file}"


if __name__ == "__main__":
    sys.exit(main())
