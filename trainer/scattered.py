"""A training on machines that do not share a disk: each process beside the main one works in a place that passes.

What counts lies with the main process: its checkpoints are whole, and are handed out when a training is taken up again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from trainer.processes import Crew
from trainer.workdir import Workdir


@contextmanager
def place(crew: Crew, work: Workdir) -> Iterator[tuple[Workdir, bool]]:
    """The place of this process, and whether any process has one of its own.

    All processes call it together, once the main one has made `work`; who finds that has it too.
    """
    crew.share(None)
    mine = work.is_made()
    scattered = not all(crew.all(mine))
    if mine:
        yield work, scattered
        return
    with tempfile.TemporaryDirectory(prefix="loradock-training-") as directory:
        yield Workdir(Path(directory) / work.run_id), scattered


def handed_out(crew: Crew, work: Workdir, checkpoint: Path) -> Path:
    """The main process's checkpoint in this process's own place, copied there where it is not; all call it together."""
    mine = work.checkpoints / checkpoint.name
    if all(crew.all(mine.is_dir())):
        return mine
    names: list[Path] = crew.share([path.relative_to(mine) for path in mine.rglob("*") if path.is_file()])
    for name in names:
        content = crew.share((mine / name).read_bytes() if crew.main else None)
        if not (mine / name).exists():
            (mine / name).parent.mkdir(parents=True, exist_ok=True)
            (mine / name).write_bytes(content)
    return mine


class Gathers(TrainerCallback):  # type: ignore[misc]  # transformers' lazy module has no types
    """Adds to the main process's checkpoint what the Trainer writes in every process: the state of random numbers."""

    def __init__(self, crew: Crew, work: Workdir) -> None:
        self._crew, self._work = crew, work

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Bring them together; all processes are here."""
        checkpoint = self._work.checkpoints / f"checkpoint-{state.global_step}"
        mine = f"rng_state_{self._crew.rank}.pth"
        for name, content in self._crew.all((mine, (checkpoint / mine).read_bytes())):
            if self._crew.main and not (checkpoint / name).exists():
                (checkpoint / name).write_bytes(content)
