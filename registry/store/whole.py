"""Store with the calls that listing, lineage and clean-up need."""

from __future__ import annotations

from registry.store import Store
from registry.store.lineage import Lineages
from registry.store.pages import Pages
from registry.store.removal import Removals


class Whole(Store, Pages, Lineages, Removals):
    """The registry's calls to MLflow."""
