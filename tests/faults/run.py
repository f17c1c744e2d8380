"""How much the tests notice: `make test-power`, or `python tests/faults/run.py [FAULT ...]`.

Each patch beside this file is a fault that somebody could write. It is planted in a copy of the tree, where one of its
tests must fail then, with the words that the patch names; without it, all its tests must pass there.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.support.faults.fault import Fault, faults
from tests.support.stack.commands import say

ROOMS = ("loradock", "registry", "trainer", "serving")
_LAST = 3000
"""Characters of what pytest says that are shown."""


@dataclass
class Copy:
    """A copy of the tree, in which faults are planted; whatever tests start is started from it."""

    root: Path
    clean: dict[str, str] = field(default_factory=dict)
    """By test: why it does not pass without a fault; empty where it does."""

    @property
    def environ(self) -> Mapping[str, str]:
        """Before the installed packages, which are the tree itself, Python finds those of the copy."""
        others = os.environ.get("PYTHONPATH")
        path = os.pathsep.join(filter(None, (str(self.root), others)))
        return os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}

    def fill(self) -> None:
        """Copy what git tracks or would track, as it is now."""
        words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file() or (ROOT / name).is_symlink():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.root / name, follow_symlinks=False)

    def prove(self) -> None:
        """End where a process that a test may start would have our code from elsewhere."""
        program = Path(sys.executable).with_name("loradock")
        for words in ([program, "--help"], [sys.executable, "-P", "-m", "loradock", "--help"]):
            if (found := _origins(words, self.environ)) != {str(self.root)}:
                sys.exit(f"{words[0]} has our code from {found or 'nowhere'}, and not from the copy in {self.root}")

    def check(self, fault: Fault) -> str:
        """Why a fault was not caught; empty where it was."""
        if fault.lost:
            return f"there is no {fault.lost[0]}"
        if misfit := fault.misfit:
            return misfit
        for test in fault.caught_by:
            if test not in self.clean:
                self.clean[test] = self._failure(test)
            if self.clean[test]:
                return f"without the fault, {test} fails:\n{self.clean[test][-_LAST:]}"
        with fault.planted():
            self._forget()
            found = self._failure("-x", *fault.caught_by)
        self._forget()
        if not found:
            return "its tests pass"
        return "" if fault.says in found else f"its tests fail, but do not say {fault.says!r}:\n{found[-_LAST:]}"

    def _failure(self, *words: str) -> str:
        """What pytest says where a test failed, was skipped or was not there; empty where all passed."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
        done = subprocess.run(command, cwd=self.root, env=self.environ, capture_output=True, text=True, check=False)
        passed = not done.returncode and "skipped" not in done.stdout.splitlines()[-1]
        return "" if passed else done.stdout + done.stderr

    def _forget(self) -> None:
        """Delete compiled code: a change within a second that leaves a file's size goes unnoticed."""
        for room in ROOMS:
            for compiled in (self.root / room).rglob("__pycache__"):
                shutil.rmtree(compiled)


def _origins(words: Sequence[str | Path], environ: Mapping[str, str]) -> set[str]:
    """The directories from which a command imports our packages, as `python -v` tells."""
    verbose = {**environ, "PYTHONVERBOSE": "1"}
    told = subprocess.run(words, cwd="/", env=verbose, capture_output=True, text=True, check=True).stderr
    return set(re.findall(r"code object from '?(/\S+)/loradock/\S*__init__", told))


def main() -> None:
    """Do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="FAULT", help="which, by number; all without any")
    parser.add_argument("--list", action="store_true", help="say what the faults are, and which tests catch them")
    given = parser.parse_args()
    names = given.names or [fault.number for fault in faults()]
    if unknown := {*names} - {fault.number for fault in faults()}:
        parser.error(f"there is no {', '.join(sorted(unknown))}; --list shows them")
    if given.list:
        for fault in faults():
            say("\n  ".join([fault.name, fault.about, *fault.caught_by]))
        return
    with tempfile.TemporaryDirectory(prefix="loradock-faults-") as scratch:
        copy = Copy(Path(scratch).resolve())
        copy.fill()
        copy.prove()
        chosen = [fault for fault in faults(copy.root) if fault.number in names]
        rows = [_tried(copy, fault, f"{number} of {len(chosen)}") for number, fault in enumerate(chosen, 1)]
    for fault, missed, seconds in rows:
        say(f"{'MISSED' if missed else 'caught'}  {seconds:6.1f} s  {fault.name}  {' '.join(fault.caught_by)}")
    missed = sum(bool(why) for _, why, _ in rows)
    say(f"{len(rows) - missed} of {len(rows)} faults were caught, in {sum(row[2] for row in rows):.0f} s")
    sys.exit(bool(missed))


def _tried(copy: Copy, fault: Fault, which: str) -> tuple[Fault, str, float]:
    """What came of it, and the seconds that it took."""
    say(f"{which}: {fault.name}")
    started = time.monotonic()
    missed = copy.check(fault)
    seconds = time.monotonic() - started
    say(f"   {missed or 'caught'}, {seconds:.1f} s")
    return fault, missed, seconds


if __name__ == "__main__":
    main()
