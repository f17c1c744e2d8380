"""A training in several processes, on one machine or on several: who this one is, and what all of them share."""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from loradock.registry.errors import BadInput, LoradockError, first_line
from loradock.trainer.recipe import Training

MAIN_PORT: Final = 29500
"""As accelerate and torchrun have it."""


class ProcessLost(LoradockError):
    """Another process of the crew is gone, or can no longer be reached."""

    def __init__(self, said: str) -> None:
        super().__init__(
            f"another process of this training is gone: {said}",
            hint="the reason is in that machine's log; run the same command with --resume on every machine to continue",
        )


@dataclass(frozen=True, slots=True)
class Machines:
    """The machines of one training, in the terms of `accelerate launch`; `rank` is this one's number."""

    count: int = 1
    rank: int = 0
    host: str = ""
    port: int = MAIN_PORT
    """Where the first machine listens and the others come to."""


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

    def all(self, value: Any) -> list[Any]:
        """Every process's value, by rank, in every process."""
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        found: list[Any] = gather_object([value])
        return found

    def agree(self, facts: Mapping[str, str]) -> None:
        """Hold what every process has against the main one's; raises BadInput in all of them where they differ."""
        first, *others = self.all(dict(facts))
        for rank, other in enumerate(others, start=1):
            if odd := [name for name in first if other[name] != first[name]]:
                raise BadInput(
                    f"process {rank} has another {' and '.join(odd)} than the main process",
                    hint="give every machine the same recipe, data and base",
                )

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
    """The crew that this process was started in, by us, accelerate or torchrun; alone when by none of them."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Crew(0, 1)
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    if state.backend == "gloo":
        atexit.register(state.destroy_process_group)  # else its threads may abort a process that ends with an error
    return Crew(state.process_index, state.num_processes)


@contextmanager
def losses_told() -> Iterator[None]:
    """Raise ProcessLost for what gloo and NCCL say when another process has gone away."""
    try:
        yield
    except RuntimeError as error:
        from torch.distributed import DistError

        if isinstance(error, DistError) or "gloo/" in str(error):
            raise ProcessLost(re.sub(r"^\[\S*gloo/\S*\] ", "", first_line(error))) from error
        raise
