"""MLflow as the ground the registry stands on; the only package here that imports mlflow.

Every method is one or two MLflow calls, and MLflow's errors leave as ours. What MLflow does not promise by
itself (compare-and-set, one version per digest) is built on top, in `promotion` and `versions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from loradock.registry.store.adapters import Adapters
from loradock.registry.store.connection import connect, default_store, experiment_id, masked, translated, upsert
from loradock.registry.store.evidence import Evidences
from loradock.registry.store.families import Family
from loradock.registry.store.ledgers import Ledger, Ledgers
from loradock.registry.store.lineage import Lineages
from loradock.registry.store.pages import Pages
from loradock.registry.store.references import References
from loradock.registry.store.removal import Removals
from loradock.registry.store.texts import Texts

__all__ = ["Family", "Ledger", "Store", "connect", "default_store", "experiment_id", "masked", "translated", "upsert"]


class Store(Adapters, Evidences, Ledgers, Lineages, Pages, References, Removals, Texts):
    """The registry's calls to MLflow."""

    @contextmanager
    def run(self, name: str, tags: Mapping[str, str]) -> Iterator[str]:
        """A run for work that is no training, by its id; it ends as FINISHED, or as FAILED with the error."""
        with translated(self.uri):
            experiment = experiment_id(self.client, self.settings, self.settings.experiment)
            run_id: str = self.client.create_run(experiment, run_name=name, tags=dict(tags)).info.run_id
        status = "FAILED"
        try:
            yield run_id
            status = "FINISHED"
        finally:
            with translated(self.uri):
                self.client.set_terminated(run_id, status)
