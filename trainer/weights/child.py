"""A version that was made of others: its run, its bytes and its parents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loradock.registry import recording, versions
from loradock.registry.records import Facts, Version
from loradock.registry.scratch import room
from loradock.registry.store import Store
from loradock.trainer import tracking

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Story:
    """What its run tells."""

    title: str
    parameters: Mapping[str, str]
    """What decided the result."""
    metrics: Mapping[str, float]
    report: str
    """JSON, kept as report.json."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """By file name."""


def add(
    store: Store, name: str, directory: Path, facts: Facts, story: Story, say: Say, base: str | None = None
) -> Version:
    """Make a version of the files in `directory`, last of all; the same bytes give the same version.

    `facts` are those of the files, with their parents; the run is filled in. Its reference is recorded, on the base
    that `base` names where its facts do not. Raises what `versions.register` does.
    """
    existing = store.find_version(name, facts.digest)
    tags = {"loradock.made_from": ", ".join(facts.parents)}
    with store.run(story.title, tags) as run_id, room(store.settings.artifacts):
        run = tracking.Run(store, run_id)
        run.parameters(story.parameters)
        run.measured(0, story.metrics)
        run.flush()
        run.text(story.report, "report.json")
        for file, figure in story.figures.items():
            run.figure(figure, file)
        if existing is None:
            store.put_adapter(directory, name=name, facts=facts.model_copy(update={"run_id": run_id}))
    own = versions.own_shapes(facts.base, store.settings, base)
    made = existing or versions.register(store, run_id, name, base=own)
    recording.attempt(store, made, say, base)
    return made
