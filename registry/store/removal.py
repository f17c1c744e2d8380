"""What the clean-up asks of MLflow: everything that needs a family's versions, and taking one away for good."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from loradock.registry.errors import LoradockError, NotFound
from loradock.registry.records import Version
from loradock.registry.refs import VersionRef
from loradock.registry.store.client import ModelVersion
from loradock.registry.store.connection import Connection, translated
from loradock.registry.store.copies import followed, is_copy
from loradock.registry.store.families import search_versions, version_from
from loradock.registry.store.lineage import Publication, publications_in
from loradock.registry.store.tags import PREFIX

_CONDEMNED: Final = f"{PREFIX}condemned"
"""The tag of a LoggedModel whose bytes are about to go."""


@dataclass(frozen=True, slots=True)
class Held:
    """A version, and where it was published."""

    version: Version
    publications: tuple[Publication, ...]


class Removals(Connection):
    """Reading a whole family, and deleting: only `gc` calls these, whose cost grows with the family."""

    def holdings(self, name: str) -> tuple[Held, ...]:
        """Every version of a family that loradock registered, newest first."""
        found = [item for item in search_versions(self, f"name = '{name}'") if f"{PREFIX}digest" in item.tags]
        held = (Held(version_from(item), publications_in(item.tags)) for item in found)
        return tuple(sorted(held, key=lambda one: one.version.ref, reverse=True))

    def made_from(self, name: str) -> Mapping[int, tuple[str, ...]]:
        """By the number of a version of `name`: the versions, of any family, that were made or copied from it."""
        needs: dict[int, list[str]] = {}
        prefix = f"{name}/"
        for item in search_versions(self, f"tags.`{PREFIX}parents` LIKE '%\"{prefix}%'"):
            for parent in _parents(item):
                if parent.startswith(prefix) and parent.removeprefix(prefix).isdigit():
                    needs.setdefault(int(parent.removeprefix(prefix)), []).append(f"{item.name}/{item.version}")
        source = f"models:/{prefix}"
        for item in search_versions(self, f"source_path LIKE '{source}%'"):
            if (number := str(item.source).removeprefix(source)).isdigit():
                needs.setdefault(int(number), []).append(f"{item.name}/{item.version}")
        return {number: tuple(sorted(set(refs))) for number, refs in needs.items()}

    def users(self, source: str) -> tuple[VersionRef, ...]:
        """The versions of any family, whoever registered them, that have these bytes."""
        found = search_versions(self, f"source_path = '{source}'")
        return tuple(sorted(VersionRef(item.name, int(item.version)) for item in found))

    def aliases_of(self, ref: VersionRef) -> tuple[str, ...]:
        """The aliases that stand at a version, as it says itself; none for one that is deleted."""
        try:
            with translated(self.uri, f"version {str(ref)!r}"):
                return tuple(self.client.get_model_version(ref.name, str(ref.number)).aliases)
        except NotFound:
            return ()

    def condemn(self, source: str) -> bool:
        """Mark bytes as about to go; False when they are gone, and for a copy, which has none of its own.

        Who registers them meanwhile makes the version first and looks for the mark then (`condemned`), as whoever
        deletes them sets the mark first and looks for versions then (`users`): one of the two sees the other.
        """
        if is_copy(source):
            return False
        model_id = source.removeprefix("models:/")
        try:
            with translated(self.uri, f"adapter {model_id!r}"):
                self.client.get_logged_model(model_id)
                self.client.set_logged_model_tags(model_id, {_CONDEMNED: "yes"})
        except NotFound:
            return False
        return True

    def condemned(self, source: str) -> bool:
        """Whether bytes are about to go, or gone."""
        try:
            model_id = followed(self, source).removeprefix("models:/")
            with translated(self.uri, f"adapter {model_id!r}"):
                return _CONDEMNED in self.client.get_logged_model(model_id).tags
        except NotFound:
            return True

    def spare(self, source: str) -> None:
        """Take the mark off again."""
        model_id = source.removeprefix("models:/")
        with translated(self.uri, f"adapter {model_id!r}"):
            self.client.delete_logged_model_tag(model_id, _CONDEMNED)

    def free(self, source: str) -> int:
        """Delete an adapter's files and its LoggedModel; returns the bytes that its files had.

        MLflow's own deletion of a LoggedModel leaves the files. Killed in between, it can be called again.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        model_id = source.removeprefix("models:/")
        try:
            with translated(self.uri, f"adapter {model_id!r}"):
                location = self.client.get_logged_model(model_id).artifact_location
                if model_id not in location.split("/"):
                    raise LoradockError(f"{model_id} is kept in {location}, which is not a directory of its own")
                files = get_artifact_repository(location, tracking_uri=self.uri)
                size = sum(_sizes(files, ""))
                files.delete_artifacts()
                self.client.delete_logged_model(model_id)
        except (NotFound, FileNotFoundError):  # another clean-up was faster
            return 0
        except OSError as error:
            raise LoradockError(
                f"the files of {model_id} cannot be deleted: {error.strerror}",
                hint="the next gc goes on here; `--debug` shows which file it is",
            ) from error
        return size

    def delete_version(self, ref: VersionRef) -> None:
        """Delete a version in MLflow; one that is deleted already is no error."""
        try:
            with translated(self.uri, f"version {str(ref)!r}"):
                self.client.delete_model_version(ref.name, str(ref.number))
        except NotFound:
            return


def _parents(item: ModelVersion) -> tuple[str, ...]:
    """A version's parents, one in the making included; raises LoradockError where somebody changed them."""
    try:
        return tuple(map(str, json.loads(item.tags[f"{PREFIX}parents"])))
    except (ValueError, TypeError) as error:
        raise LoradockError(
            f"the parents of {item.name}/{item.version} were changed in MLflow", hint="restore the tag"
        ) from error


def _sizes(files: Any, path: str) -> Iterator[int]:
    for file in files.list_artifacts(path):
        if file.is_dir:
            yield from _sizes(files, file.path)
        else:
            yield file.file_size or 0
