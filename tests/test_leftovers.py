"""A run of the tests that is killed leaves no process behind, nor a database."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.leftovers import marked
from tests.support.waiting import until

ROOT = Path(__file__).parents[1]
TEST = """
import os, subprocess, sys, time
from pathlib import Path
from tests.support.leftovers import MARK
from tests.support.postgres import postgres

STUBBORN = "import time; from signal import *; signal(SIGTERM, SIG_IGN); print('up', flush=True); time.sleep(900)"
ITS_PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}], start_new_session=True)"

def test_that_never_ends():
    with postgres():
        parent = subprocess.Popen([sys.executable, "-c", ITS_PARENT], stdout=subprocess.PIPE, start_new_session=True)
        assert parent.stdout.readline()
        Path(__file__).with_name("part").write_text(os.environ[MARK])
        Path(__file__).with_name("part").rename(Path(__file__).with_name("mark"))
        time.sleep(900)
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "with a worker"])
def test_nothing_outlives_a_run_that_is_killed(workers: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TEST)
    words = ["-p", "tests.conftest", "-p", "no:cacheprovider", "--rootdir", tmp_path, *workers, tmp_path / "test_it.py"]
    run = subprocess.Popen([sys.executable, "-m", "pytest", *words], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        until(lambda: (tmp_path / "mark").exists() or run.poll() is not None, 120)
        mark = (tmp_path / "mark").read_text()
        assert len([*marked(mark)]) > 5  # the stubborn one, and PostgreSQL's
        assert [*Path(tempfile.gettempdir()).glob(f"*{mark}*")]
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    until(lambda: not [*marked(mark)], 60)
    until(lambda: not [*Path(tempfile.gettempdir()).glob(f"*{mark}*")], 60)
