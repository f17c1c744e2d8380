"""The demo and the README's commands, run as a new user runs them: real training, real vLLM, real HTTP."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def commands(heading: str) -> list[str]:
    """What stands behind `$ ` in the console blocks below a heading."""
    section = re.split(r"^## ", README.split(f"## {heading}\n")[1], flags=re.MULTILINE)[0]
    blocks = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def shell(script: str, user: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    """Run a script in a session of its own, so that whatever it left behind can be ended with it."""
    with subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=user / "loradock",
        env=os.environ | {"HOME": str(user), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        start_new_session=True,
    ) as process:
        try:
            out, _ = process.communicate(timeout=seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(script, process.returncode, out, "")


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory, base_dir: Path) -> Path:
    """A home directory that holds nothing but the converted base model and the examples."""
    home = tmp_path_factory.mktemp("user")
    shutil.copytree(ROOT / "examples", home / "loradock" / "examples")
    cache = home / ".cache" / "loradock"
    cache.mkdir(parents=True)
    (cache / "bases").symlink_to(base_dir.parent.parent)
    return home


@pytest.fixture(scope="module")
def demo(user: Path) -> str:
    """What `make demo` prints."""
    done = shell(f"{sys.executable} examples/demo.py", user, 2400)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_every_make_command_of_the_readme_is_a_target() -> None:
    named = {
        word for line in re.findall(r"^\$ make (.+)$", README, re.MULTILINE) for word in line.split("#")[0].split()
    }
    assert {"demo", "test"} <= named <= MAKE_TARGETS


@pytest.mark.slow
@pytest.mark.minutes
@pytest.mark.timeout(2500)
def test_the_demo_ends_with_its_zeros(demo: str) -> None:
    for what in (
        "failures",
        "answers that mix two versions",
        "answers by neither version",
        "base-model answers that changed",
    ):
        assert re.search(rf"{what}\s+│\s+0\s", demo), what
    assert int(re.search(r"requests\s+│\s+(\d+)", demo)[1]) > 48  # type: ignore[index]
    assert re.search(r"support-bot/1\s+│\s+production", demo)


@pytest.mark.slow
@pytest.mark.minutes
@pytest.mark.timeout(2500)
def test_the_commands_of_the_readme_run(demo: str, user: Path) -> None:
    script = "\n".join(commands("By hand"))
    assert "loradock serve" in script
    script = script.replace("8123", str(free_port()))
    done = shell(script, user, 1200)
    assert done.returncode == 0, done.stdout
    assert '"model":"support-bot/2"' in done.stdout.replace(" ", "")
    assert "Traceback" not in done.stdout
