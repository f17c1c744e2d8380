"""`loradock up` as a process, of which nothing is left in the end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


def family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


@contextmanager
def running(home: Path, log: Path, *words: str) -> Iterator[psutil.Process]:
    program = Path(sys.executable).with_name("loradock")
    environ = os.environ | {"LORADOCK_HOME": str(home), "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as sink, subprocess.Popen([program, "up", *words], env=environ, stderr=sink) as process:
        try:
            yield psutil.Process(process.pid)
        finally:
            left = family(psutil.Process(process.pid))[1:] if process.poll() is None else []
            process.kill()
            for one in left:
                one.kill()
