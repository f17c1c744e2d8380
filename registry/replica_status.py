"""What a serving replica reports of itself: one frozen value, written there and read here, with a format number."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

from loradock.registry.errors import BadInput, NotFound, first_line
from loradock.registry.records import Base, TextSettings
from loradock.registry.refs import VersionRef, parse_version

FORMAT: Final = 1
"""Another number as soon as a reader of this one would misread what a replica writes."""


def _parsed(value: Any) -> Any:
    try:
        return parse_version(value) if isinstance(value, str) else value
    except BadInput as error:
        raise ValueError(str(error)) from error


Ref = Annotated[VersionRef, BeforeValidator(_parsed), PlainSerializer(str)]
Moment = Annotated[datetime, PlainSerializer(lambda at: at.isoformat(timespec="milliseconds"))]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class ServedBase(_Frozen):
    """The base model of a replica, told apart by what it is, and the names that it answers to."""

    names: tuple[str, ...]
    revision: str = ""
    quantization: str = "none"
    config_digest: str
    weights_digest: str
    text: TextSettings = TextSettings()

    def same_weights(self, other: Base) -> bool:
        """Whether both are the same network with the same weights."""
        return (self.config_digest, self.weights_digest) == (other.config_digest, other.weights_digest)


class RegistryView(_Frozen):
    """How a replica sees its registry."""

    uri: str
    """Without a password."""
    reachable: bool
    staleness_seconds: float | None
    """Since it was last read; None while what is served is the last good plan on disk."""
    error: str


class Answering(_Frozen):
    """The version that answers a public name."""

    version: Ref
    digest: str
    """Of its bytes; empty where they were unloaded meanwhile."""
    since: Moment
    promoted: Ref | None
    """The version that should answer; None where the name is no longer promoted."""


class Weight(_Frozen):
    """A version's part of the requests for a bare name, from 0 to 1."""

    version: Ref
    weight: float


class Quarantined(_Frozen):
    """Why a version takes no traffic, and when it is tried again."""

    reason: str
    attempts: int
    retry_in_seconds: float


class Refused(_Frozen):
    """A promoted version that this replica will not load, and why."""

    version: Ref
    reason: str


class KeysView(_Frozen):
    """What a replica reports of its API keys; not their names, since every caller may ask."""

    file: str | None
    count: int
    error: str


class ReplicaStatus(_Frozen):
    """All that a replica reports of itself."""

    format: Literal[1] = FORMAT
    base: ServedBase
    ready: bool
    converged: bool
    waiting: Mapping[str, str]
    """By public name whose promoted version does not answer it: why."""
    unlike: Mapping[Ref, str]
    """By version that was trained with another tokenizer or template than the base has here: the difference."""
    histories: Mapping[str, str]
    """By adapter whose history does not go on from what was seen of it: the fault."""
    stopping: bool
    capacity: int
    """Adapters that it keeps loaded."""
    slots: int
    """Adapters that its engine takes into one batch."""
    max_rank: int
    aliases: tuple[str, ...]
    """Those that it follows."""
    registry: RegistryView
    adapters: Mapping[str, Answering]
    cold: Mapping[str, Ref]
    """By public name: the version that is loaded at the first request for it."""
    shares: Mapping[str, Mapping[str, Weight]]
    """By adapter and alias."""
    loading: tuple[Ref, ...]
    quarantined: Mapping[Ref, Quarantined]
    refused: Mapping[str, Refused]
    resident: Mapping[Ref, int]
    """By loaded version: its requests in flight."""
    proofs: Mapping[Ref, Mapping[str, float]]
    """By proven version: the figures, in nats, but for `size` and its `doubt`."""
    keys: KeysView | None = None
    """None for a caller whose key is for some models only."""

    def as_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return self.model_dump(mode="json")


def read(found: Any, url: str) -> ReplicaStatus:
    """A status as a replica at this URL sent it.

    Raises NotFound for one of another format, and for what is none.
    """
    if not isinstance(found, dict) or "adapters" not in found:
        raise NotFound(f"{url} answers, but not as a loradock replica")
    if (number := found.get("format")) != FORMAT:
        raise NotFound(
            f"{url} is of another version of loradock: its status has format {number or 'none'}, and not {FORMAT}",
            hint="use the same version of loradock here and there",
        )
    try:
        return ReplicaStatus.model_validate(found)
    except ValidationError as error:
        raise NotFound(f"{url} answers, but not as a loradock replica: {first_line(error)}") from error
