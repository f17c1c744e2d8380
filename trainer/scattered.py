"""A training on machines that do not share a disk: each process beside the main one works in a place that passes.

What counts lies with the main process: its checkpoints are whole, and are handed out when a training is taken up again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loradock.trainer.processes import Crew
from loradock.trainer.workdir import Workdir


@contextmanager
def place(crew: Crew, work: Workdir) -> Iterator[Workdir]:
    """The place of this process: all call it together, once the main one has made `work`; who finds that has it too."""
    crew.share(None)
    if work.is_made():
        yield work
        return
    with tempfile.TemporaryDirectory(prefix="loradock-training-") as directory:
        yield Workdir(Path(directory) / work.run_id)


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


def gather(crew: Crew, checkpoint: Path) -> None:
    """Bring into the main process's checkpoint what each writes for itself, its state of random numbers.

    All processes call it together, before the main one writes the Trainer's state: so what has that is whole.
    """
    if crew.size == 1:
        return
    mine = f"rng_state_{crew.rank}.pth"
    for name, content in crew.all((mine, (checkpoint / mine).read_bytes())):
        if crew.main:
            (checkpoint / name).write_bytes(content)
