"""The life of a LoRA adapter in one tool.

What can be imported from here is the public API: `import loradock; loradock.promote("support-bot/2")`. Each name is
imported when it is first used. All modules below are private, and may change with any version; `loradock.registry`,
`.trainer` and `.serving` are the directories of these names beside this one.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the names of the table, as type checkers read them
    from loradock.api import open_store as open_store
    from loradock.api.aliases import promote as promote
    from loradock.api.aliases import read_history as read_history
    from loradock.api.aliases import rollback as rollback
    from loradock.api.training import combine as combine
    from loradock.api.training import convert as convert
    from loradock.api.training import evaluate as evaluate
    from loradock.api.training import load_data as load_data
    from loradock.api.training import load_recipe as load_recipe
    from loradock.api.training import merge as merge
    from loradock.api.training import train as train
    from loradock.api.versions import check_adapter as check_adapter
    from loradock.api.versions import diff_versions as diff_versions
    from loradock.api.versions import fetch_version as fetch_version
    from loradock.api.versions import import_adapter as import_adapter
    from loradock.api.versions import publish as publish
    from loradock.api.versions import register as register
    from loradock.api.versions import resolve as resolve
    from loradock.api.versions import verify_version as verify_version
    from loradock.registry.check import Diagnosis as Diagnosis
    from loradock.registry.check import Finding as Finding
    from loradock.registry.diff import Difference as Difference
    from loradock.registry.errors import BadInput as BadInput
    from loradock.registry.errors import Conflict as Conflict
    from loradock.registry.errors import DigestMismatch as DigestMismatch
    from loradock.registry.errors import Drifted as Drifted
    from loradock.registry.errors import GateFailed as GateFailed
    from loradock.registry.errors import HistoryCut as HistoryCut
    from loradock.registry.errors import HistoryDamaged as HistoryDamaged
    from loradock.registry.errors import LoradockError as LoradockError
    from loradock.registry.errors import NotFound as NotFound
    from loradock.registry.errors import NotServable as NotServable
    from loradock.registry.errors import Refused as Refused
    from loradock.registry.errors import Taken as Taken
    from loradock.registry.errors import Unreachable as Unreachable
    from loradock.registry.errors import WrongBase as WrongBase
    from loradock.registry.history import History as History
    from loradock.registry.publish import Published as Published
    from loradock.registry.records import Base as Base
    from loradock.registry.records import Facts as Facts
    from loradock.registry.records import Manifest as Manifest
    from loradock.registry.records import Move as Move
    from loradock.registry.records import Version as Version
    from loradock.registry.refs import AliasRef as AliasRef
    from loradock.registry.refs import VersionRef as VersionRef
    from loradock.registry.refs import parse_ref as parse_ref
    from loradock.registry.settings import Settings as Settings
    from loradock.registry.store import Store as Store
    from loradock.trainer.data import Rows as Rows
    from loradock.trainer.evaluation.run import Outcome as EvaluationOutcome  # noqa: F401 - offered as this
    from loradock.trainer.recipe import Recipe as Recipe
    from loradock.trainer.recipe_file import RecipeFile as RecipeFile
    from loradock.trainer.run import Outcome as TrainingOutcome  # noqa: F401 - offered as this
    from loradock.trainer.weights.combination import Combined as Combined
    from loradock.trainer.weights.convert import Converted as Converted
    from loradock.trainer.weights.fold import Merged as Merged
else:
    _OFFERED = {
        "loradock.api": "open_store",
        "loradock.api.aliases": "promote read_history rollback",
        "loradock.api.training": "combine convert evaluate load_data load_recipe merge train",
        "loradock.api.versions": "check_adapter diff_versions fetch_version import_adapter "
        "publish register resolve verify_version",
        "loradock.registry.check": "Diagnosis Finding",
        "loradock.registry.diff": "Difference",
        "loradock.registry.errors": "BadInput Conflict DigestMismatch Drifted GateFailed HistoryCut HistoryDamaged "
        "LoradockError NotFound NotServable Refused Taken Unreachable WrongBase",
        "loradock.registry.history": "History",
        "loradock.registry.publish": "Published",
        "loradock.registry.records": "Base Facts Manifest Move Version",
        "loradock.registry.refs": "AliasRef VersionRef parse_ref",
        "loradock.registry.settings": "Settings",
        "loradock.registry.store": "Store",
        "loradock.trainer.data": "Rows",
        "loradock.trainer.evaluation.run": "Outcome:EvaluationOutcome",
        "loradock.trainer.recipe": "Recipe",
        "loradock.trainer.recipe_file": "RecipeFile",
        "loradock.trainer.run": "Outcome:TrainingOutcome",
        "loradock.trainer.weights.combination": "Combined",
        "loradock.trainer.weights.convert": "Converted",
        "loradock.trainer.weights.fold": "Merged",
    }
    """The names of each module; `NAME:OURS` where it is another there."""
    _HOMES = {
        name.rpartition(":")[2]: (module, name.partition(":")[0])
        for module, names in _OFFERED.items()
        for name in names.split()
    }
    __all__ = sorted(_HOMES)  # noqa: PLE0605 - a list

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'loradock' has no attribute {name!r}")
        module, there = _HOMES[name]
        return getattr(importlib.import_module(module), there)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOMES})
