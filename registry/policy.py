"""A family's policy: what a version must show before an alias moves to it. YAML, kept in the family's history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveInt, RootModel, ValidationError, model_validator

from loradock.registry.errors import BadInput, faults_of, first_line
from loradock.registry.evidence import PERPLEXITY
from loradock.registry.public_key import parse as parse_key
from loradock.registry.records import Record
from loradock.registry.refs import parse_alias


def _is_key(text: str) -> str:
    parse_key(text)
    return text


Name = Annotated[str, Field(pattern=r"\S+")]
PublicKey = Annotated[str, AfterValidator(_is_key)]


class Bound(Record):
    """Where a metric's mean must lie."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _bounds_something(self) -> Bound:
        if self.min is None and self.max is None:
            raise ValueError("give min, or max, or both")
        return self


class Rules(Record):
    """What one alias asks for. What is not said is not asked."""

    metrics: Mapping[Name, Bound] = {}
    """Bounds on the version's mean of a metric."""
    no_worse: Mapping[Name, NonNegativeFloat] = {}
    """How much worse than the incumbent a metric may be: all of the interval of a paired bootstrap over the rows."""
    better_than_base: Mapping[Name, NonNegativeFloat] = {}
    """By how much a metric must be better than the bare base's, by the same interval."""
    effect: bool = False
    """Whether some row's loss must differ from the bare base's."""
    parity: NonNegativeFloat | None = None
    """Nats that the mean loss through an endpoint may be from that through transformers, on the same rows."""
    data: str = ""
    """The digest of the rows that must have been used, or how it begins."""
    min_rows: PositiveInt = 20
    """How many rows the evaluation must have; an interval over few rows says nothing."""
    max_age_days: NonNegativeFloat | None = None
    """How old the evaluation may be."""
    tags: Mapping[Name, str] = {}
    """Tags that reviewers must have set on the version in MLflow; `*` stands for any value."""
    min_hours: Mapping[Name, NonNegativeFloat] = {}
    """Aliases under which the version must stand now, and for how many hours it must have stood there."""
    signed_by: Mapping[Name, PublicKey] = {}
    """Who may move the alias, by name and public key: each of its entries in the history bears one's signature."""

    @model_validator(mode="after")
    def _is_compared_by_rows(self) -> Rules:
        if PERPLEXITY in {*self.no_worse, *self.better_than_base}:
            raise ValueError(f"{PERPLEXITY} has no value for a row: compare loss, whose exponential it is")
        return self


class Policy(RootModel[dict[str, Rules]]):
    """Rules by alias."""

    @model_validator(mode="after")
    def _one_key_a_name(self) -> Policy:
        for rules in self.root.values():
            for name, key in rules.signed_by.items():
                if self.signers[name] != key:
                    raise ValueError(f"{name} has two keys in signed_by: give each a name of its own")
        return self

    @property
    def signers(self) -> Mapping[str, str]:
        """The public keys of all who may sign for some alias, by name."""
        return {name: key for rules in self.root.values() for name, key in rules.signed_by.items()}

    def of(self, alias: str) -> Rules | None:
        """An alias's rules; None where it has none."""
        return self.root.get(alias)


def parse(text: str, *, what: str = "the policy") -> Policy:
    """A policy from its YAML; raises BadInput with every fault."""
    import yaml

    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"{what} is not YAML: {first_line(error)}") from error
    if not isinstance(given, dict):
        raise BadInput(f"{what} holds no rules", hint="write an alias with its rules below it: docs/policy.md")
    try:
        policy = Policy.model_validate(given)
    except ValidationError as error:
        raise BadInput(
            f"{what} is invalid", problems=faults_of(error), hint="the rules are listed in docs/policy.md"
        ) from error
    for alias, rules in policy.root.items():
        parse_alias(alias)
        for other in rules.min_hours:
            parse_alias(other)
    return policy
