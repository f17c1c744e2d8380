"""What to evaluate, and all that can be known of it before a model is loaded; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import SecretStr

from loradock.registry import promotion
from loradock.registry.base import LocalBase
from loradock.registry.refs import AliasRef, VersionRef
from loradock.registry.secret import NO_KEY
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.trainer.data import Rows
from loradock.trainer.evaluation import contestants, heldout
from loradock.trainer.evaluation.contestants import Contestants
from loradock.trainer.evaluation.metrics import Metric


@dataclass(frozen=True, slots=True)
class Task:
    """What to evaluate, on what, and how."""

    ref: VersionRef | AliasRef
    data: str
    metrics: tuple[Metric, ...]
    against: str | None = None
    """The incumbent's alias; None for `production`, where nothing may stand."""
    base: str | None = None
    """Where the base is; None for what the version says of it."""
    endpoint: str | None = None
    """A URL; None for transformers in this process."""
    api_key: SecretStr = NO_KEY
    new_tokens: int = 256
    limit: int | None = None
    texts: bool = True
    """Whether prompts, references and answers are kept with the figures."""

    @property
    def asks(self) -> bool:
        """Whether some metric needs answers."""
        return any(metric.score for metric in self.metrics)


@dataclass(frozen=True, slots=True)
class Case:
    """A task whose version, incumbent, base and rows were found."""

    task: Task
    settings: Settings
    found: Contestants
    local: LocalBase
    rows: Rows
    trained: Mapping[str, str]
    """What the version's training logged before its first step; nothing for an adapter from elsewhere."""


def prepare(task: Task, settings: Settings, say: Callable[[str], None]) -> Case:
    """Find all that a task names; raises BadInput, NotFound, Unreachable or WrongBase."""
    store = Store(settings)
    version = promotion.resolve(store, task.ref)
    trained = store.parameters_of(version.facts.run_id)
    rows = heldout.load(task.data, version, trained, limit=task.limit, say=say)
    if task.asks:
        heldout.check_answers(rows)
    local = contestants.base_of(version, task.base, settings)
    found = contestants.find(store, version, task.against, say)
    return Case(task, settings, found, local, rows, trained)
