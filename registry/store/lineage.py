"""What MLflow knows around a version: the run that made it, what was made from it, its evaluations and publications."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from loradock.registry.errors import LoradockError, NotFound
from loradock.registry.records import Record
from loradock.registry.refs import VersionRef
from loradock.registry.store.client import Run
from loradock.registry.store.connection import Connection, translated, upsert
from loradock.registry.store.evidence import EXPERIMENT
from loradock.registry.store.tags import PREFIX, child_tag

_RECIPE: Final = "recipe.yaml"
_CANDIDATE: Final = f"{PREFIX}evidence.candidate"
"""Their tag with the digest that was evaluated."""
_PUBLICATION: Final = f"{PREFIX}publication."
_LIMIT: Final = 100  # children, and evaluations, that are told; newest first


class RunFacts(Record):
    """A run as MLflow has it."""

    run_id: str
    name: str
    status: str
    """MLflow's word, in lower case; `deleted` for one in MLflow's trash."""
    started_at: datetime
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    """The last value of each."""
    tags: Mapping[str, str]
    recipe: str = ""
    """Where its recipe is, `runs:/ID/recipe.yaml`; empty when it has none."""


class Publication(Record):
    """A copy of a version in a repository outside."""

    repo: str
    """As its host names it: `ORG/NAME`."""
    revision: str
    """The commit that the upload made there."""
    at: datetime
    forced: str = ""
    """Why it was written over somebody else's commit; empty where it was not forced."""


def publication_tag(number: int) -> str:
    """The key of the tag that keeps a publication, as canonical JSON; numbers grow with time."""
    return f"{_PUBLICATION}{number}"


def publications_in(tags: Mapping[str, str]) -> tuple[Publication, ...]:
    """The publications that a version's tags tell of, oldest first; raises LoradockError where one was changed."""
    keys = sorted((key for key in tags if key.startswith(_PUBLICATION)), key=lambda key: (len(key), key))
    try:
        return tuple(Publication.model_validate_json(tags[key]) for key in keys)
    except ValueError as error:
        raise LoradockError(
            f"a tag {_PUBLICATION}* that loradock wrote was changed in MLflow", hint="restore it, or delete that tag"
        ) from error


class Lineages(Connection):
    """Reading what is around a version, in calls whose cost does not grow with the family."""

    def run_facts(self, run_id: str) -> RunFacts | None:
        """A run; None for one that is gone."""
        if not run_id:
            return None
        try:
            with translated(self.uri, f"run {run_id!r}"):
                run = self.client.get_run(run_id)
        except NotFound:
            return None
        found = _run_facts(run)
        if found.status == "deleted":
            return found
        with translated(self.uri, f"run {run_id!r}"):
            files = {file.path for file in self.client.list_artifacts(run_id)}
        return found.model_copy(update={"recipe": f"runs:/{run_id}/{_RECIPE}" if _RECIPE in files else ""})

    def metrics_of(self, run_id: str) -> Mapping[str, float]:
        """A run's last metrics; none for a run that is gone."""
        try:
            with translated(self.uri, f"run {run_id!r}"):
                return dict(self.client.get_run(run_id).data.metrics) if run_id else {}
        except NotFound:
            return {}

    def children(self, ref: VersionRef) -> tuple[VersionRef, ...]:
        """The versions of any family that were made from this one."""
        with translated(self.uri):
            found = self.client.search_model_versions(f"tags.`{child_tag(str(ref))}` = 'yes'", max_results=_LIMIT)
        return tuple(sorted(VersionRef(item.name, int(item.version)) for item in found))

    def evaluations(self, digest: str) -> tuple[RunFacts, ...]:
        """The runs that evaluated these bytes, newest first."""
        with translated(self.uri):
            if (experiment := self.client.get_experiment_by_name(EXPERIMENT)) is None:
                return ()
            found = self.client.search_runs(
                [experiment.experiment_id],
                f"tags.`{_CANDIDATE}` = '{digest}'",
                max_results=_LIMIT,
                order_by=["attributes.start_time DESC"],
            )
        return tuple(_run_facts(run) for run in found)

    def add_publication(self, ref: VersionRef, publication: Publication) -> None:
        """Keep a publication with its version, any number of times.

        Its number is its time in milliseconds, so that of two that are written at once neither takes the other's place.
        """
        key = publication_tag(int(publication.at.timestamp() * 1000))
        with translated(self.uri, f"version {str(ref)!r}"):
            upsert(lambda: self.client.set_model_version_tag(ref.name, str(ref.number), key, publication.canonical()))

    def publications(self, ref: VersionRef) -> tuple[Publication, ...]:
        """Where a version was published, oldest first."""
        with translated(self.uri, f"version {str(ref)!r}"):
            return publications_in(self.client.get_model_version(ref.name, str(ref.number)).tags)


def _run_facts(run: Run) -> RunFacts:
    deleted = run.info.lifecycle_stage == "deleted"
    return RunFacts(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        status="deleted" if deleted else run.info.status.lower(),
        started_at=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        params=dict(sorted(run.data.params.items())),
        metrics=dict(sorted(run.data.metrics.items())),
        tags=dict(run.data.tags),
    )
