"""Where the adapter lies in what PEFT, Axolotl, LLaMA-Factory, Unsloth or a Trainer has written.

All of them write PEFT's two files in the end: at the root, in checkpoint-N/ below it, or, when a model carries several
adapters, each in a directory with its name. ms-swift gives each training a directory below the one that it was told.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loradock.registry import unread
from loradock.registry.artifact import CONFIG, WEIGHTS
from loradock.registry.check.findings import some
from loradock.registry.errors import BadInput, LoradockError, NotFound

_CHECKPOINT = re.compile(r"checkpoint-([0-9]{1,9})")
_STATE = "trainer_state.json"
_PICKLED = ("adapter_model.bin", "adapter_model.pt")


@dataclass(frozen=True, slots=True)
class Found:
    """An adapter's two files, and what lies beside them."""

    directory: Path
    weights: Path
    below: str
    """Where that is, from the directory that was given; empty for that directory itself."""
    aside: tuple[str, ...]
    """What is not taken."""

    @property
    def pickled(self) -> bool:
        """Whether the weights are a pickle."""
        return self.weights.name in _PICKLED


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state of a training that holds an adapter."""

    path: Path
    step: int
    loss: float | None
    """On held-out data at that step, where it was measured."""
    best: bool

    def __str__(self) -> str:
        loss = f", eval_loss {self.loss:.4g}" if self.loss is not None else ""
        return f"{self.path.name}: step {self.step}{loss}{', the best' if self.best else ''}"


def find(directory: Path, checkpoint: str = "") -> Found:
    """The adapter in a directory; `checkpoint` is a step, `best` or `last`, for one of the checkpoint-N/ below it.

    Raises NotFound where there is no such directory or checkpoint, and BadInput where it holds no adapter, or several.
    """
    if not directory.is_dir():
        raise _no_directory(directory)
    named = [path for path in _below(directory) if not _CHECKPOINT.fullmatch(path.name)]
    steps = checkpoints(directory)
    trainings = [] if steps or weights_in(directory) else [path for path in named if checkpoints(path)]
    if trainings and trainings == named:
        if len(named) == 1:
            return _beneath(directory, named[0], find(named[0], checkpoint))
    elif checkpoint:
        return _found(directory, _chosen(directory, checkpoint).path)
    if weights_in(directory):
        return _found(directory, directory)
    if len(named) == 1 and not steps:
        return _found(directory, named[0])
    if not named and not steps:
        raise _nothing(directory)
    choice = "--checkpoint N, best or last takes one of its checkpoints" if steps else ""
    kinds = {path: "a training with checkpoints" if path in trainings else "an adapter of that name" for path in named}
    other = f"give {named[0]} for that of {named[0].name}" if named else ""
    raise BadInput(
        f"{directory} holds no adapter itself; these below it do",
        problems=[*map(str, steps), *(f"{path.name}: {kind}" for path, kind in kinds.items())],
        hint="; ".join(filter(None, (choice, other))),
    )


def weights_in(directory: Path) -> Path | None:
    """An adapter's weights, where the directory holds its configuration, too; safetensors before pickles."""
    if not (directory / CONFIG).is_file():
        return None
    return next((directory / name for name in (WEIGHTS, *_PICKLED) if (directory / name).is_file()), None)


def checkpoints(directory: Path) -> tuple[Checkpoint, ...]:
    """The checkpoints below a training's directory that hold an adapter, by step.

    The best is the one that the Trainer noted in trainer_state.json, or else the one with the lowest eval_loss there.
    """
    held = {int(match[1]): path for path in _below(directory) if (match := _CHECKPOINT.fullmatch(path.name))}
    if not held:
        return ()
    state = _state(directory) or _state(held[max(held)])
    losses = dict(_losses(state))
    noted = _CHECKPOINT.fullmatch(re.split(r"[/\\]", str(state.get("best_model_checkpoint")))[-1])
    measured = [step for step in held if step in losses]
    best = int(noted[1]) if noted else min(measured, key=lambda step: losses[step], default=None)
    return tuple(Checkpoint(path, step, losses.get(step), step == best) for step, path in sorted(held.items()))


def _chosen(directory: Path, wanted: str) -> Checkpoint:
    steps = checkpoints(directory)
    if wanted == "last" and steps:
        return steps[-1]
    match = [step for step in steps if (step.best if wanted == "best" else str(step.step) == wanted)]
    if match:
        return match[0]
    if wanted not in ("best", "last") and not wanted.isdecimal():
        raise BadInput(f"{wanted!r} is no checkpoint", hint="write its step, best or last")
    which = "best checkpoint named in trainer_state.json" if wanted == "best" else f"checkpoint {wanted}"
    held = some(map(str, steps), most=20)
    raise NotFound(f"{directory} holds no {which}", hint=f"it holds {held or 'none'}")


def _found(root: Path, directory: Path) -> Found:
    within = directory.relative_to(root).as_posix()
    weights = weights_in(directory)
    if weights is None:  # a checkpoint of a model with several adapters
        return _beneath(root, directory, find(directory))
    taken = {directory / CONFIG, weights, directory}
    beside = {*directory.iterdir(), *root.iterdir()} - taken
    aside = sorted(f"{path.relative_to(root).as_posix()}{'/' if path.is_dir() else ''}" for path in beside)
    return Found(directory, weights, "" if root == directory else within, tuple(aside))


def _beneath(root: Path, directory: Path, inner: Found) -> Found:
    """What was found in a directory, as seen from one above it."""
    within = directory.relative_to(root).as_posix()
    below = f"{within}/{inner.below}".rstrip("/")
    return replace(inner, below=below, aside=tuple(f"{within}/{name}" for name in inner.aside))


def _below(directory: Path) -> Sequence[Path]:
    """The directories below that hold an adapter, or several by name."""
    return [
        path
        for path in sorted(directory.iterdir())
        if path.is_dir() and (weights_in(path) or any(weights_in(at) for at in path.iterdir() if at.is_dir()))
    ]


def _no_directory(path: Path) -> LoradockError:
    if not path.exists():
        return NotFound(f"there is no directory {path}")
    return unread.refused(path) or BadInput(f"{path} is a file", hint="give the directory that it lies in")


def _nothing(directory: Path) -> BadInput:
    names = {path.name for path in directory.iterdir()}
    if (told := unread.refused(directory)) is not None:
        return told
    if CONFIG in names:
        return BadInput(
            f"{directory} holds {CONFIG} and no {WEIGHTS}",
            hint="where the Hub has adapter_model.bin alone, --convert-pickle fetches and converts it",
        )
    if WEIGHTS in names:
        return BadInput(f"{directory} holds {WEIGHTS} and no {CONFIG}", hint="PEFT writes both; fetch the other one")
    if "config.json" in names:
        return BadInput(
            f"{directory} holds no {CONFIG}: it is a whole model", hint="give what the training wrote before merging"
        )
    return BadInput(f"{directory} holds no {CONFIG}", hint="give the directory that PEFT's save_pretrained wrote")


def _state(directory: Path) -> dict[str, Any]:
    try:
        state = json.loads((directory / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def _losses(state: dict[str, Any]) -> Iterator[tuple[int, float]]:
    """Steps and the losses that the Trainer measured on held-out data."""
    history = state.get("log_history")
    for entry in history if isinstance(history, list) else ():
        if isinstance(entry, dict) and isinstance(loss := entry.get("eval_loss"), int | float) and math.isfinite(loss):
            yield entry.get("step", -1), float(loss)
