"""The `loradock` command as a shell sees it, in a process forked from one that has imported MLflow already."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST = 60  # seconds
PRELOADED = ["mlflow.store.tracking.sqlalchemy_store", "mlflow.tracking.client", "registry.promotion"]


def processes() -> Any:
    """How such processes are started."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@dataclass(frozen=True, slots=True)
class Done:
    """What a command left."""

    exit_code: int
    out: str
    err: str


def loradock(*words: str, limit: int | None = None, **environment: str) -> Done:
    """Run it in this environment and `environment`; no file can be written beyond its first `limit` bytes."""
    with tempfile.TemporaryDirectory() as scratch:
        process = processes().Process(
            target=_main, args=(words, dict(os.environ) | environment, scratch, limit), daemon=True
        )
        process.start()
        process.join(LONGEST)
        assert process.exitcode is not None, f"{words} still runs after {LONGEST} s"
        return Done(process.exitcode, Path(scratch, "out").read_text(), Path(scratch, "err").read_text())


def _main(words: tuple[str, ...], environment: Mapping[str, str], scratch: str, limit: int | None) -> None:
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(f"{scratch}/{name}", os.O_WRONLY | os.O_CREAT), number)
    os.chdir(scratch)
    os.environ.clear()
    os.environ.update(environment)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = ["loradock", *words]
    from registry.cli import main

    main()
