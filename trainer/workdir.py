"""Where an unfinished training lives on this machine: its checkpoints, and whose they are."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loradock.registry import scratch
from loradock.registry.errors import LoradockError
from loradock.registry.records import Base, TextSettings, canonical_json
from loradock.registry.settings import Settings
from loradock.trainer.recipe import Recipe

_STATE: Final = "trainer_state.json"


def identity(recipe: Recipe, data_digest: str, base: Base, text: TextSettings) -> str:
    """SHA-256 of all that decides what comes out of a training: only its own like can go on from its checkpoints."""
    parts = [recipe.model_dump(mode="json", exclude={"name"}), data_digest, base.weights_digest, base.config_digest]
    parts += [text.tokenizer, text.template]
    # PEFT takes the first key of a pattern that matches, and canonical JSON has no order.
    parts += [f"{key}: {list(value)}" for key, value in recipe.method.settings.items() if isinstance(value, dict)]
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Workdir:
    """The directory of one run that has not finished."""

    path: Path

    @property
    def run_id(self) -> str:
        """The MLflow run."""
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        """What the Trainer writes to."""
        return self.path / "checkpoints"

    def make(self, identity_: str) -> None:
        """Make the directory of a new run; raises LoradockError when it cannot be written."""
        try:
            self.checkpoints.mkdir(parents=True)
            (self.path / "identity").write_text(identity_)
        except OSError as error:
            raise LoradockError(
                f"checkpoints cannot be written to {self.path}: {error.strerror}",
                hint="free space there or make it writable, or set LORADOCK_HOME",
            ) from error

    def empty(self, name: str) -> Path:
        """A path here with nothing at it."""
        shutil.rmtree(self.path / name, ignore_errors=True)
        return self.path / name

    def last(self) -> Path | None:
        """The newest checkpoint that was written to its end; the Trainer writes its state last."""
        found = [path for path in self.checkpoints.glob("checkpoint-*") if _whole(path)]
        return max(found, key=step_of, default=None)

    def is_made(self) -> bool:
        """Whether the directory is there, made by this process or by one that shares its disk."""
        return (self.path / "identity").is_file()

    def is_of(self, identity_: str) -> bool:
        """Whether this is a training of the same recipe, data and base."""
        return self.is_made() and (self.path / "identity").read_text() == identity_

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out; raises LoradockError when one is at work here."""
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LoradockError(
                    f"run {self.run_id} of this recipe is under way in another process",
                    hint="wait for it, or end it and resume again",
                ) from error
            yield

    def is_held(self) -> bool:
        """Whether a process is at work here."""
        try:
            with self.held():
                return False
        except LoradockError:
            return True

    def remove(self) -> None:
        """Drop the checkpoints; the run's outcome is in MLflow."""
        shutil.rmtree(self.path, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was written after."""
    return int(checkpoint.name.rpartition("-")[2])


def rebase(checkpoint: Path) -> None:
    """Let a checkpoint name the best one beside it: the Trainer keeps an address of the home that it was written in."""
    path = checkpoint / _STATE
    state = json.loads(path.read_text(encoding="utf-8"))
    best = state.get("best_model_checkpoint")
    if best and Path(best).parent != checkpoint.parent:
        state["best_model_checkpoint"] = str(checkpoint.parent / Path(best).name)
        scratch.replace(path, json.dumps(state, indent=2, sort_keys=True) + "\n")


def unfinished(settings: Settings) -> list[Workdir]:
    """Every training on this machine that did not finish, the newest first."""
    found = [path for path in settings.trainings.glob("*") if (path / "identity").is_file()]
    return [Workdir(path) for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]


def _whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / _STATE).read_text())
    except (OSError, ValueError):
        return False
    return True
