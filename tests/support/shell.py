"""The `loradock` command as a shell sees it, in a process forked from one that has imported MLflow already."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

from tests.support import warm

LONGEST = 60  # seconds
LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.argv[0] = "loradock"
from loradock.cli import main
main()
"""


def processes() -> Any:
    """How such processes are started."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(warm.IMPORTS["registry"]))
    return context


@dataclass(frozen=True, slots=True)
class Done:
    """What a command left."""

    exit_code: int
    out: str
    err: str


def loradock(*words: str, limit: int | None = None, **environment: str) -> Done:
    """Run it in this environment and `environment`; no file can be written beyond its first `limit` bytes."""
    command = [warm.LORADOCK, *words]
    if limit is not None:
        command = [sys.executable, "-c", LIMITED, str(limit), *words]
    with tempfile.TemporaryDirectory() as scratch:
        done = warm.run(command, kind="registry", cwd=scratch, env=os.environ | environment, timeout=LONGEST)
    return Done(done.returncode, done.stdout, done.stderr)
