"""Who is measured: the version, the one under the alias, and the base that both were trained on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from loradock.registry import artifact, promotion, text
from loradock.registry import base as bases
from loradock.registry.base import LocalBase
from loradock.registry.errors import NotFound, WrongBase
from loradock.registry.evidence import Subject
from loradock.registry.records import Version
from loradock.registry.refs import PRODUCTION, AliasRef
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.trainer.evaluation.endpoint import Endpoint
from loradock.trainer.recipe import Recipe

Say = Callable[[str], None]

_QUANTIZATION: Final = "recipe.quantization.bnb_4bit_"


@dataclass(frozen=True, slots=True)
class Contestants:
    """The version, and the incumbent where there is one."""

    candidate: Version
    incumbent: Version | None

    @property
    def same(self) -> bool:
        """Whether the incumbent holds the candidate's bytes, and need not be measured by itself."""
        return self.incumbent is not None and self.incumbent.facts.digest == self.candidate.facts.digest

    @property
    def apart(self) -> Mapping[Subject, Version | None]:
        """Each that is measured by itself, the bare base first, and its version."""
        found: dict[Subject, Version | None] = {"base": None, "candidate": self.candidate}
        return found | ({"incumbent": self.incumbent} if self.incumbent and not self.same else {})

    @property
    def words(self) -> str:
        """Who is held against whom."""
        against = f"{self.incumbent.ref} and " if self.incumbent else ""
        return f"{self.candidate.ref} against {against}the base {self.candidate.facts.base.id}"


def find(store: Store, version: Version, against: str | None, say: Say) -> Contestants:
    """The version with the one under the alias; None for `against` is `production`, which may stand nowhere.

    An incumbent of another base is left out, and told. Raises NotFound for an alias that was named and is not there.
    """
    alias = AliasRef(version.ref.name, against or PRODUCTION)
    try:
        incumbent = promotion.resolve(store, alias)
    except NotFound as error:
        if against:
            raise
        say(f"there is no incumbent: {error}")
        return Contestants(version, None)
    if not incumbent.facts.base.same_weights(version.facts.base):
        say(f"warning: {incumbent.ref}, under {alias}, is skipped: it was trained on {incumbent.facts.base.id}")
        return Contestants(version, None)
    return Contestants(version, incumbent)


def base_of(version: Version, given: str | None, settings: Settings, *, here: bool = False) -> LocalBase:
    """The base that a version was trained on, on this machine; raises WrongBase for another, NotFound for none.

    With `here` nothing is downloaded: one that is not on this machine yet is NotFound.
    """
    facts = version.facts.base
    name = f"{facts.id}@{facts.revision}" if facts.revision else facts.id
    try:
        local = bases.resolve(given or name, settings, here=here)
    except NotFound as error:
        if given is None and not bases.is_known(name, relative_to=Path.cwd()):
            error.hint = f"{version.ref} was trained on a directory of that name: name it with --base DIR"
        raise
    if not local.base.same_weights(facts):
        hint = "" if given else "name the directory of its base with --base DIR"
        raise WrongBase(str(version.ref), trained_on=facts.id, given=given or str(local.path), hint=hint)
    text.warn(version, local.path)
    return local


def as_trained(version: Version, trained: Mapping[str, str]) -> Recipe:
    """How the base is held: quantised as the version's facts say, with what its training logged of the rest."""
    kind = version.facts.base.quantization
    quantization: dict[str, Any] | None = None
    if kind == "int8":
        quantization = {"load_in_8bit": True}
    elif kind != "none":
        quantization = {
            "bnb_4bit_quant_type": kind,
            "bnb_4bit_use_double_quant": trained.get(f"{_QUANTIZATION}use_double_quant") != "False",
            "bnb_4bit_compute_dtype": trained.get(f"{_QUANTIZATION}compute_dtype", "auto"),
        }
    whole = {"name": version.ref.name, "base": version.facts.base.id, "data": "rows", "quantization": quantization}
    return Recipe.model_validate(whole | {"training": {"dtype": trained.get("recipe.training.dtype", "auto")}})


def fetch(store: Store, found: Contestants, stack: ExitStack) -> dict[Subject, Path]:
    """Each one's adapter in a directory that goes away with `stack`; raises DigestMismatch for other bytes."""
    directories: dict[Subject, Path] = {}
    for subject, version in found.apart.items():
        if version is not None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loradock-")))
            store.download(version.source, directory, what=str(version.ref))
            artifact.verify(directory, version.facts.digest, what=str(version.ref))
            directories[subject] = directory
    return directories


def served(found: Contestants, endpoint: Endpoint, say: Say) -> Contestants:
    """Those that an endpoint serves: the version and the base, and the incumbent or not, which is told.

    Raises NotFound for a version that is not served there.
    """
    for subject, version in found.apart.items():
        try:
            endpoint.measures(subject, version)
        except NotFound as error:
            if subject != "incumbent":
                raise
            say(f"warning: the incumbent is skipped: {error}; {error.hint}")
            found = replace(found, incumbent=None)
    return found
