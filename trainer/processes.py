"""A training in several processes: who this one is, and how the recipe's batch is shared out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from registry.errors import BadInput
from trainer.recipe import Training


@dataclass(frozen=True, slots=True)
class Crew:
    """The processes of one training; `rank` is this one's number."""

    rank: int
    size: int

    @property
    def main(self) -> bool:
        """Whether this is the process that speaks, logs and saves."""
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """The main process's value, in every process."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value], from_process=0)[0]

    def batch(self, training: Training) -> tuple[int, int]:
        """Rows at a time and batches to a step for each process, so that a step has the recipe's rows over all.

        Raises BadInput when they cannot be shared out evenly.
        """
        rows, batches = training.per_device_train_batch_size, training.gradient_accumulation_steps
        if batches % self.size == 0:
            return rows, batches // self.size
        if rows % self.size == 0:
            return rows // self.size, batches
        raise BadInput(
            f"{rows * batches} rows a step cannot be shared out over {self.size} processes",
            hint="make per_device_train_batch_size or gradient_accumulation_steps a multiple of the processes",
        )


def join() -> Crew:
    """The crew that this process was started in, by accelerate or torchrun; alone when by neither."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Crew(0, 1)
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return Crew(state.process_index, state.num_processes)
