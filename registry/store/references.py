"""References in MLflow: one run each, whose `reference.json` holds what PEFT says with an adapter on a base."""

from __future__ import annotations

from typing import Final

from loradock.registry.records import Base
from loradock.registry.reference import Reference
from loradock.registry.store.connection import experiment_id, translated
from loradock.registry.store.shelves import COMPLETE, Shelf, Shelves

EXPERIMENT: Final = "loradock-references"
"""The experiment that references go to."""

_SHELF: Final = Shelf(
    Reference, "reference", EXPERIMENT, "delete that run in MLflow, and record the reference again: loradock reference"
)


class References(Shelves):
    """Recording and finding references."""

    def record_reference(self, reference: Reference) -> None:
        """Keep a reference; killed at any step it counts for nothing, and can be called again."""
        experiment = experiment_id(self.client, self.settings, EXPERIMENT)
        with translated(self.uri):
            key = {"adapter": reference.adapter, "base": reference.base, "config": reference.config}
            tags = {_SHELF.tag(name): value for name, value in key.items()}
            title = f"reference {reference.adapter[:12]}"
            run_id = self.client.create_run(experiment, run_name=title, tags=tags).info.run_id
            self.client.log_param(run_id, _SHELF.digest, reference.digest)
            self.client.log_text(run_id, reference.canonical(), _SHELF.file)
            self.client.set_tag(run_id, _SHELF.state, COMPLETE)
            self.client.set_terminated(run_id)

    def find_reference(self, digest: str, base: Base) -> Reference | None:
        """The newest reference of an adapter, by its digest, on a base; None where none was recorded.

        Raises DigestMismatch for one that is not what was recorded.
        """
        wanted = {"adapter": digest, "base": base.weights_digest, "config": base.config_digest}
        runs = self._newest(_SHELF, wanted, most=1)
        if not runs:
            return None
        return self._read(
            _SHELF,
            runs[0],
            f"reference {runs[0].info.run_id}",
            meant=lambda found: found.is_of(digest, base),
            tagged="adapter or base",
        )
