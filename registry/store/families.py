"""Families and their versions: MLflow's registered models, model versions and aliases."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Final

from loradock.registry.errors import LoradockError, NotFound, Taken
from loradock.registry.records import Version
from loradock.registry.refs import AliasRef, VersionRef
from loradock.registry.settings import Settings
from loradock.registry.store.client import ModelVersion, RegisteredModel
from loradock.registry.store.connection import Connection, experiment_id, masked, refusals, translated, upsert
from loradock.registry.store.copies import is_copy
from loradock.registry.store.tags import PREFIX, facts_from

LEDGER: Final = "loradock.ledger"
"""The tag of a family, and of each of its versions, with the run in which the family's history begins."""
HEAD: Final = "loradock.head"
"""The tag of a family with the newest entry of its history, and of a version with its last move, by `heads`."""
TRAFFIC: Final = "loradock.traffic"
"""The tag of a family with the shares that its history gives: `{"canary": {"version": 3, "weight": 0.1}}`."""
FINDINGS: Final = "loradock.findings"
DOUBTS: Final = "loradock.doubts"
LEDGERS: Final = "loradock-ledgers"
"""The experiment whose runs hold each family's history."""
_IS_PROMPT: Final = "tags.`mlflow.prompt.is_prompt` = 'true'"


@dataclass(frozen=True, slots=True)
class Family:
    """One adapter's registered model, as a single call shows it."""

    name: str
    aliases: Mapping[str, int]
    """Where they stand; all of them, or those that were asked for."""
    ledger: str
    """The run in which its history begins; empty for a registered model that loradock did not make."""
    traffic: str = ""
    """The tag `loradock.traffic`, as it is."""
    head: str = ""
    """The tag `loradock.head`, as it is."""


class Families(Connection):
    """Making, finding and listing families and versions, and setting aliases."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._ledgers: dict[str, str] = {}
        """By family, where its versions say that its history begins."""
        self._heads: dict[VersionRef, str] = {}
        """What the tag `loradock.head` of a version that was read says."""

    def create_family(self, name: str) -> Family:
        """Make a registered model and its ledger; of several who try at once, one makes it and all return the same."""
        if (found := self.usable(name)) is not None:
            return found
        with translated(self.uri):
            ledger = self.new_ledger(name)
            try:
                self.client.create_registered_model(name, tags={LEDGER: ledger})
            except refusals() as error:
                self.client.delete_run(ledger)
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        return self.usable(name) or self.family(name)

    def usable(self, name: str) -> Family | None:
        """The family called `name`, or None where there is none yet; raises Taken where something else has the name.

        MLflow keeps its prompts among its registered models, and shows them to nobody who does not ask for prompts.
        """
        if (found := self.find_family(name)) is not None:
            return owned(found)
        with translated(self.uri):
            prompts = self.client.search_registered_models(f"name = '{name}' AND {_IS_PROMPT}", max_results=1)
        if prompts:
            raise Taken(name, "a prompt, and prompts share their names with registered models")
        return None

    def new_ledger(self, name: str) -> str:
        """A run for a part of a family's history, by its id."""
        ledgers = experiment_id(self.client, self.settings, LEDGERS)
        run_id: str = self.client.create_run(ledgers, run_name=ledger_title(name)).info.run_id
        self.client.set_terminated(run_id)
        return run_id

    def find_family(self, name: str) -> Family | None:
        """The family called `name`, or None."""
        try:
            return self.family(name)
        except NotFound:
            return None

    def family(self, name: str, *, alias: str = "") -> Family:
        """The family called `name`, its aliases included; raises NotFound.

        MLflow reads every version of a family to tell of it. With `alias` only that one is asked for, and where a
        version of the family was read before, in a time that does not grow.
        """
        if alias and name in self._ledgers:
            return Family(name, self.standing(name, (alias,)), self._ledgers[name])
        with translated(self.uri):
            # Not get_registered_model, which takes several times as long.
            found = self.client.search_registered_models(f"name = '{name}'", max_results=1)
        if not found:
            raise NotFound(f"there is no adapter {name!r} in {masked(self.uri)}")
        return _family_from(found[0])

    def families(self) -> tuple[Family, ...]:
        """Every family that loradock made, with its aliases: one call for each thousand."""
        found: list[Family] = []
        token: str | None = None
        with translated(self.uri):
            while True:
                page = self.client.search_registered_models(max_results=1000, page_token=token)
                found += (_family_from(model) for model in page)
                if not (token := page.token):
                    return tuple(family for family in found if family.ledger)

    def find_version(self, name: str, digest: str) -> Version | None:
        """The lowest version of `name` that holds these bytes, or None."""
        found = self._search(f"name = '{name}' AND tags.`{PREFIX}digest` = '{digest}'")
        return min(found, key=lambda version: version.ref.number, default=None)

    def version(self, ref: VersionRef) -> Version:
        """One version; raises NotFound."""
        with translated(self.uri, f"version {str(ref)!r}"):
            return self._noted(self.client.get_model_version(ref.name, str(ref.number)))

    def _noted(self, found: ModelVersion) -> Version:
        """A version, once what its tags say of its family's history is noted; a copy has those of another family."""
        if not is_copy(found.source or ""):
            ref = VersionRef(found.name, int(found.version))
            self._ledgers |= {ref.name: found.tags[LEDGER]} if LEDGER in found.tags else {}
            self._heads |= {ref: found.tags[HEAD]} if HEAD in found.tags else {}
        return version_from(found)

    def told(self, family: Family) -> Mapping[str, str]:
        """By what has it, each tag `loradock.head` of a family, and of its versions, that was read."""
        found = {str(ref): text for ref, text in self._heads.items() if ref.name == family.name}
        return found | ({family.name: family.head} if family.head else {})

    def newest(self, wanted: Collection[VersionRef]) -> dict[VersionRef, Version]:
        """Those of `wanted` that are among the newest versions of all families, which MLflow finds a thousand a call.

        For each that is wanted it looks at three at most. What it leaves out may be there all the same.
        """
        found: dict[VersionRef, Version] = {}
        for item in islice(search_versions(self, "", order=["creation_timestamp DESC"]), 3 * len(wanted)):
            ref = VersionRef(item.name, int(item.version))
            if ref in wanted:
                with suppress(LoradockError):  # `version` says why
                    found[ref] = version_from(item)
            if len(found) == len(wanted):
                break
        return found

    def tags(self, ref: VersionRef) -> Mapping[str, str]:
        """All tags of a version, those that people set included; raises NotFound."""
        with translated(self.uri, f"version {str(ref)!r}"):
            return dict(self.client.get_model_version(ref.name, str(ref.number)).tags)

    def version_at(self, ref: AliasRef) -> Version:
        """The version that an alias stands at in MLflow; raises NotFound."""
        with translated(self.uri, f"version under {str(ref)!r}"):
            try:
                return self._noted(self.client.get_model_version_by_alias(ref.name, ref.alias))
            except refusals() as error:
                if error.error_code == "INVALID_PARAMETER_VALUE":  # MLflow's word for an alias that is not there
                    raise NotFound(f"there is no alias {str(ref)!r} in {masked(self.uri)}") from error
                raise

    def standing(self, name: str, aliases: Iterable[str]) -> dict[str, int]:
        """Where those of a family's aliases stand that stand anywhere, each asked for by itself.

        A search whose second query fails has families without aliases. Nothing may be taken from anybody by that alone.
        """
        found = {}
        for alias in aliases:
            with suppress(NotFound):
                found[alias] = self.version_at(AliasRef(name, alias)).ref.number
        return found

    def versions(self, name: str) -> tuple[Version, ...]:
        """Every version of a family, oldest first."""
        return tuple(sorted(self._search(f"name = '{name}'"), key=lambda version: version.ref.number))

    def _search(self, filter_string: str) -> list[Version]:
        found = search_versions(self, filter_string)
        return [version_from(item) for item in found if f"{PREFIX}digest" in item.tags]

    def describe_family(self, name: str, text: str) -> None:
        """Set what MLflow's UI shows on top of an adapter, Markdown of at most 5,000 characters."""
        with translated(self.uri, f"adapter {name!r}"):
            self.client.update_registered_model(name, description=text)

    def describe_version(self, ref: VersionRef, text: str) -> None:
        """Set what MLflow's UI shows on top of a version, Markdown of at most 5,000 characters."""
        with translated(self.uri, f"version {str(ref)!r}"):
            self.client.update_model_version(ref.name, str(ref.number), description=text)

    def set_alias(self, ref: AliasRef, number: int | None) -> None:
        """Point an alias at a version, or take it away; last write wins. Only `promotion` calls it."""
        with translated(self.uri, f"version '{ref.name}/{number}'"):
            if number is None:
                self.client.delete_registered_model_alias(ref.name, ref.alias)
            else:
                upsert(lambda: self.client.set_registered_model_alias(ref.name, ref.alias, str(number)))

    def set_traffic(self, name: str, text: str) -> None:
        """Set the tag that replicas read an adapter's shares from; last write wins. Only `traffic` calls it."""
        with translated(self.uri, f"adapter {name!r}"):
            upsert(lambda: self.client.set_registered_model_tag(name, TRAFFIC, text))

    def tell_head(self, name: str, number: int | None, text: str) -> None:
        """Set the tag of a family, and of a version that took an alias, with the newest entry; last write wins."""
        with translated(self.uri, f"adapter {name!r}"):
            upsert(lambda: self.client.set_registered_model_tag(name, HEAD, text))
        if number is not None:
            with suppress(NotFound), translated(self.uri, f"version '{name}/{number}'"):
                upsert(lambda: self.client.set_model_version_tag(name, str(number), HEAD, text))


def search_versions(
    store: Connection, filter_string: str, *, order: Sequence[str] = ("name ASC", "version_number ASC")
) -> Iterator[ModelVersion]:
    """Every version that MLflow finds, of any family, by name and number or otherwise: one call for each thousand."""
    token: str | None = None
    with translated(store.uri):
        while True:
            page = store.client.search_model_versions(
                filter_string, max_results=1000, order_by=list(order), page_token=token
            )
            yield from page
            if not (token := page.token):
                return


def owned(family: Family) -> Family:
    """The family itself; raises Taken for a registered model that loradock did not make, which has no history."""
    if not family.ledger:
        raise Taken(family.name, "a registered model that something else made")
    return family


def ledger_title(name: str) -> str:
    """What the runs of a family's history are called."""
    return f"{name} history"


def _family_from(model: RegisteredModel) -> Family:
    aliases = {alias: int(number) for alias, number in model.aliases.items()}
    tags = model.tags
    return Family(model.name, aliases, tags.get(LEDGER, ""), tags.get(TRAFFIC, ""), tags.get(HEAD, ""))


def version_from(found: ModelVersion) -> Version:
    """A version from MLflow's; raises NotFound for one that loradock did not register."""
    if f"{PREFIX}digest" not in found.tags:
        raise NotFound(f"there is no version '{found.name}/{found.version}' that loradock registered")
    return Version(
        ref=VersionRef(found.name, int(found.version)),
        facts=facts_from(found.tags),
        source=found.source or "",
        created_at=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
        findings=tuple(json.loads(found.tags.get(FINDINGS, "[]"))),
        doubts=tuple(json.loads(found.tags.get(DOUBTS, "[]"))),
    )
