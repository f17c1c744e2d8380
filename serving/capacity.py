"""How many adapters a server takes into one batch, how many it keeps loaded, and of what rank: pure.

vLLM reserves each slot of a batch at its start, on every layer that an adapter may change and at the rank limit. A kept
adapter takes memory only from when it is loaded, as much as its own rank and layers ask for. Both are sums over the
base's layers of `rank * (inputs + outputs)` values, which docs/capacity.md holds against what vLLM allocates.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from loradock.registry.check import RANKS, BaseShapes
from loradock.registry.machine import GIB
from loradock.registry.records import Version

SHARE: Final = 8
"""The part of the machine's memory that adapters get unless it is said: one in so many."""
MOVING: Final = 2
"""Slots, and kept adapters, beside one a promoted version: while an alias moves, both its versions are in use."""

_LEAST_SLOTS, _MOST_SLOTS = 4, 16
_LEAST_RANK: Final = 16
"""vLLM's own default: what is promoted later may have a higher rank than what is there."""
_LEAST_KEPT, _MOST_KEPT = 1 + MOVING, 256
"""With fewer there is no place for a canary and for the next version; with more a start is slow, since a replica loads
and proves what it keeps before it says that it is ready."""


@dataclass(frozen=True, slots=True)
class Given:
    """What the user decided; None where it follows from what is promoted."""

    slots: int | None = None
    kept: int | None = None
    rank: int | None = None
    budget: int | None = None
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a server is started with, and why."""

    promoted: int
    """Versions under the aliases that are followed, for this base."""
    slots: int
    kept: int
    rank: int
    slot_bytes: int
    kept_bytes: int
    """Of the largest promoted adapter; where none is promoted, of one on every linear layer at the rank limit."""
    budget: int
    """Bytes."""
    of_memory: int | None
    """The machine's memory that the budget is a part of; None where it was given."""
    above_rank: tuple[str, ...] = ()
    """Promoted versions whose rank is over the limit."""

    @property
    def slots_bytes(self) -> int:
        """What all slots take together."""
        return self.slots * self.slot_bytes

    @property
    def cold(self) -> int:
        """Promoted versions that are not loaded before a request asks for them."""
        return max(0, self.promoted - max(1, self.kept - MOVING))

    def lines(self, base: str) -> list[str]:
        """What was chosen and why, for a person."""
        adapters = "1 adapter is" if self.promoted == 1 else f"{self.promoted} adapters are"
        whence = f"1/{SHARE} of {size(self.of_memory)} of memory" if self.of_memory else "as given"
        rows = (
            (
                "slots",
                self.slots,
                f"in one batch, {size(self.slot_bytes)} each: {size(self.slots_bytes)} from the start",
            ),
            ("kept", self.kept, f"loaded at most, {size(self.kept_bytes)} each: {size(self.kept * self.kept_bytes)}"),
            ("rank", self.rank, "at most"),
            ("budget", size(self.budget), f"for both, {whence}; --adapter-memory sets it"),
        )
        return [f"{adapters} promoted for {base}", *(f"  {name:<7}{value!s:>9}  {why}" for name, value, why in rows)]

    def warnings(self) -> list[str]:
        """What of it the user may want otherwise."""
        found = [f"{ref} will be quarantined: its rank is above {self.rank}" for ref in self.above_rank]
        if self.cold:
            found.append(
                f"{self.cold} of {self.promoted} adapters will be loaded when a request first asks for them; more "
                "--adapter-memory, or `-- --max-cpu-loras NUMBER`, keeps more of them loaded"
            )
        if self.promoted > self.slots:
            found.append(
                f"requests for more than {self.slots} adapters at once wait for each other; more --max-loras, at "
                f"{size(self.slot_bytes)} each, lets more of them run"
            )
        if (taken := self.slots_bytes + self.kept * self.kept_bytes) > self.budget:
            found.append(f"{size(taken)} for adapters is above the budget of {size(self.budget)}")
        return found


def choose(versions: Iterable[Version], shapes: BaseShapes, *, item: int, memory: int, given: Given) -> Capacity:
    """What to serve `versions` with, on a base and in values of `item` bytes.

    Slots are as many as versions and `MOVING` more, from 4 to 16, as long as they take half of the budget at most;
    what they leave is for kept adapters, from 3 to 256. vLLM wants no fewer kept than slots.
    """
    promoted = {version.ref: version for version in versions}.values()
    budget = memory // SHARE if given.budget is None else given.budget
    rank = given.rank or rank_limit(version.facts.rank for version in promoted)
    one_slot = item * rank * _width(shapes)
    one_kept = max(
        (item * version.facts.rank * _width(shapes, version.facts.targets) for version in promoted),
        default=item * rank * _linear_width(shapes),
    )
    wanted = min(max(len(promoted) + MOVING, _LEAST_SLOTS), _MOST_SLOTS)
    slots = given.slots or max(1, min(wanted, budget // 2 // max(one_slot, 1), given.kept or wanted))
    room = (budget - slots * one_slot) // max(one_kept, 1)
    return Capacity(
        promoted=len(promoted),
        slots=slots,
        kept=given.kept or max(slots, _LEAST_KEPT, min(room, _MOST_KEPT)),
        rank=rank,
        slot_bytes=one_slot,
        kept_bytes=one_kept,
        budget=budget,
        of_memory=memory if given.budget is None else None,
        above_rank=tuple(str(version.ref) for version in promoted if version.facts.rank > rank),
    )


def rank_limit(ranks: Iterable[int]) -> int:
    """The smallest rank limit from 16 on that vLLM knows and that admits every one of `ranks`; else its largest."""
    largest = max((_LEAST_RANK, *ranks))
    return next((limit for limit in RANKS if limit >= largest), RANKS[-1])


def size(count: int) -> str:
    """Bytes for a person."""
    if count >= GIB:
        return f"{count / GIB:.1f} GiB"
    return f"{count / 2**20:.1f} MiB"


def _width(shapes: BaseShapes, targets: Collection[str] = ()) -> int:
    """Values of an adapter of rank 1 on the modules called `targets`, or on all that vLLM may give slots to."""
    named = [
        layer for name, layer in shapes.layers.items() if not targets or name.rsplit(".", 1)[-1] in targets
    ] or shapes.layers.values()
    return sum((layer.inputs or 0) + (layer.outputs or 0) for layer in named)


def _linear_width(shapes: BaseShapes) -> int:
    """Values of an adapter of rank 1 on every linear layer but the head, as `all-linear` means it."""
    return sum(
        (layer.inputs or 0) + (layer.outputs or 0)
        for name, layer in shapes.layers.items()
        if not layer.embedding and not name.endswith("lm_head")
    )
