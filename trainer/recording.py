"""Recording references: each version's adapter fetched, verified, and heard on its base.

The entry point `loradock.reference: peft`. Torch is imported last, so that what is wrong before is told at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from loradock.registry import artifact
from loradock.registry.records import Version
from loradock.registry.store import Store
from loradock.registry.versions import fetched
from loradock.trainer.evaluation import contestants

if TYPE_CHECKING:
    from loradock.trainer.reference import Witness

Say = Callable[[str], None]


def record(store: Store, versions: Sequence[Version], say: Say, base: str | None = None, *, here: bool = False) -> None:
    """Record what PEFT says with each version.

    `base` is where their base is, by default what their facts name; it is read once for versions in a row, and with
    `here` not downloaded. Raises NotFound or WrongBase for the base, DigestMismatch, BadInput, or LoradockError where
    PEFT or memory fails.
    """
    found = [contestants.base_of(version, base, store.settings, here=here) for version in versions]
    from loradock.trainer.reference import Witness
    from loradock.trainer.weights.quiet import quiet

    witness: Witness | None = None
    with quiet():
        for version, local in zip(versions, found, strict=True):
            say(f"recording the PEFT reference of {version.ref} on {local.base.id}")
            if witness is None or witness.local.path != local.path:
                witness = None  # two might not fit
                witness = Witness(local)
            with fetched(store, version) as directory:
                artifact.verify(directory, version.facts.digest, what=str(version.ref))
                store.record_reference(witness.reference(directory, version.facts.digest))
