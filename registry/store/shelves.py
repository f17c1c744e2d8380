"""Records kept in MLflow, each as the file of a run of its own.

A record's digest stands in a param, which MLflow writes once, and the tag that makes it count is written last: one that
was killed half-way never counts, and neither does one whose file was changed.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from pydantic import ValidationError

from loradock.registry.errors import DigestMismatch, LoradockError, NotFound
from loradock.registry.records import Record
from loradock.registry.store.client import Run
from loradock.registry.store.connection import Connection, translated

Kept = TypeVar("Kept", bound=Record)

COMPLETE: Final = "complete"
"""The state of a record that counts, in the tag `Shelf.state`."""


@dataclass(frozen=True, slots=True)
class Shelf(Generic[Kept]):
    """Where records of one kind are kept."""

    kind: type[Kept]
    name: str
    experiment: str
    hint: str
    """What to do about one that is damaged."""

    @property
    def file(self) -> str:
        """The artifact that holds a record."""
        return f"{self.name}.json"

    @property
    def digest(self) -> str:
        """The param that holds a record's digest."""
        return f"{self.name}.digest"

    @property
    def state(self) -> str:
        """The tag that is written last."""
        return self.tag("state")

    def tag(self, key: str) -> str:
        """The tag by which records are found."""
        return f"loradock.{self.name}.{key}"


class Shelves(Connection):
    """Finding and reading what is kept."""

    def _newest(self, shelf: Shelf[Kept], wanted: Mapping[str, str], *, most: int) -> Sequence[Run]:
        """The newest complete records that have these tags, newest first."""
        tags = {shelf.tag(key): value for key, value in wanted.items()} | {shelf.state: COMPLETE}
        with translated(self.uri):
            experiment = self.client.get_experiment_by_name(shelf.experiment)
            if experiment is None:
                return ()
            found: Sequence[Run] = self.client.search_runs(
                [experiment.experiment_id],
                " AND ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items()),
                max_results=most,
                order_by=["attributes.start_time DESC"],
            )
        return found

    def _read(self, shelf: Shelf[Kept], run: Run, title: str, *, meant: Callable[[Kept], bool], tagged: str) -> Kept:
        """The record of a run, called `title`; raises DigestMismatch for one that is not what was recorded.

        One that is not `meant` carries tags that name another one, `tagged`.
        """
        expected = run.data.params.get(shelf.digest, "")

        def damaged(found: str, fault: str) -> LoradockError:
            error = DigestMismatch(title, expected=expected, found=found, faults=[fault])
            error.hint = shelf.hint
            return error

        content = self._content(shelf, run.info.run_id)
        if content is None:
            raise damaged("", f"{shelf.file} is missing")
        digest = hashlib.sha256(content).hexdigest()
        try:
            record = shelf.kind.model_validate_json(content)
        except ValidationError as error:
            raise damaged(digest, f"{shelf.file} cannot be read") from error
        if digest != expected:
            raise damaged(digest, f"{shelf.file} changed")
        if not meant(record):
            raise damaged(digest, f"its tags name another {tagged}")
        return record

    def _content(self, shelf: Shelf[Kept], run_id: str) -> bytes | None:
        try:
            with tempfile.TemporaryDirectory(prefix="loradock-") as scratch, translated(self.uri, f"file of {run_id}"):
                return Path(self.client.download_artifacts(run_id, shelf.file, scratch)).read_bytes()
        except (NotFound, OSError):
            return None
