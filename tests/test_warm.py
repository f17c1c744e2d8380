"""A process that is forked from a warm one is what `subprocess` would have started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import warm

TOLD = """
import json, os, sys
files = sorted(int(name) for name in os.listdir("/proc/self/fd"))
told = {"argv": sys.argv, "environ": dict(os.environ), "cwd": os.getcwd(), "parent": os.getppid(), "files": files[:-1]}
told |= {"leads": os.getsid(0) == os.getpid(), "main": __name__, "given": sys.stdin.read()}
print(json.dumps(told))
print("to stderr", file=sys.stderr)
sys.exit(7)
"""


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("session", [False, True])
def test_it_has_what_it_was_given_and_nothing_of_the_warm_one(
    cold: bool, session: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cold:
        monkeypatch.setenv("LORADOCKTEST_COLD", "1")
    environ = {"PATH": os.environ["PATH"], "ONLY": "this"}
    how: dict[str, Any] = {"env": environ, "cwd": tmp_path, "start_new_session": session}
    done = warm.run([sys.executable, "-c", TOLD, "a", "b"], kind="registry", given="words", timeout=60, **how)
    assert (done.returncode, done.stderr) == (7, "to stderr\n")
    told = json.loads(done.stdout)
    assert told.pop("environ").items() >= environ.items()
    assert told == {
        "argv": ["-c", "a", "b"],
        "cwd": str(tmp_path),
        "parent": os.getpid(),
        "files": [0, 1, 2],
        "leads": session,
        "main": "__main__",
        "given": "words",
    }


def test_it_can_be_waited_for_and_killed() -> None:
    code = "import time; print('here', flush=True); time.sleep(600)"
    with warm.Popen([sys.executable, "-c", code], kind="registry", stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "here\n"
        assert process.poll() is None
        process.kill()
        assert process.wait(timeout=60) == -signal.SIGKILL


def test_the_command_says_what_it_says_in_a_shell() -> None:
    words = ["promote", "no-such"]
    cold = subprocess.run([warm.LORADOCK, *words], capture_output=True, text=True, check=False)
    done = warm.run([warm.LORADOCK, *words], kind="registry", timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (cold.returncode, cold.stdout, cold.stderr)
    assert done.returncode == 2
