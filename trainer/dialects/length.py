"""How long a training is, in rows and steps, as far as it is known before the data is prepared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from loradock.trainer import sources
from loradock.trainer.recipe import Data


@dataclass(frozen=True, slots=True)
class Length:
    """What decides how many optimiser steps there are."""

    rows: int | None
    """None where they are not known: on the Hub, or packed."""
    heldout: float
    batch: int
    """Rows to a step: a device's batch times the accumulated ones."""
    epochs: float
    max_steps: int | None = None

    @property
    def epoch(self) -> int | None:
        """The steps of an epoch, as transformers counts them: part batches and part steps count whole."""
        return None if self.rows is None else max(1, math.ceil(self.rows * (1 - self.heldout) / self.batch))

    @property
    def steps(self) -> int | None:
        """All steps."""
        return self.max_steps or (None if self.epoch is None else math.ceil(self.epochs * self.epoch))

    def share(self, share: float) -> int | None:
        """The steps of a share of the training, at least one."""
        return None if self.steps is None else max(1, math.ceil(round(share * self.steps, 6)))


def count(path: Path) -> int:
    """The rows of a data file, or of all that are in a directory."""
    files = sources.read(Data(path=(str(path),)), path.parent)
    return sum(1 for file in files for _ in file.records)
