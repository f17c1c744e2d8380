"""A version that something is made of: verified, looked at by the doctor, and mended where that changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loradock.registry import artifact, check, versions
from loradock.registry.base import LocalBase
from loradock.registry.check import Diagnosis
from loradock.registry.check.mend import mend
from loradock.registry.errors import BadInput, NotServable, Refused
from loradock.registry.records import Version
from loradock.registry.scratch import scratch
from loradock.registry.store import Store

MERGED: Final = "merged"
"""What stands for a method in the facts of a merged model."""
_HOPELESS: Final = "neither merge nor convert helps: train it again without these"


@dataclass(frozen=True, slots=True)
class Parent:
    """A version's adapter on disk."""

    version: Version
    directory: Path
    method: str
    """PEFT's type, in lower case."""
    found: Diagnosis
    """Of the adapter in `directory`."""
    mended: tuple[str, ...] = ()
    """What was mended there; the version's own bytes stay as they are."""
    largest: float = 0.0
    """The largest difference of any entry of B·A that the mending made."""

    @property
    def name(self) -> str:
        """The version."""
        return str(self.version.ref)

    @property
    def is_plain(self) -> bool:
        """Whether it is plain LoRA that vLLM serves as it is."""
        return not self.found.blocking


@contextmanager
def opened(store: Store, version: Version, local: LocalBase) -> Iterator[Parent]:
    """A version's adapter, in a directory that goes away at the end.

    A start that was taken out of the base (PiSSA, OLoRA) is put back. Raises DigestMismatch, Refused for a method that
    changes no weight, NotServable for what no verb cures, and BadInput for a merged model, and for a base whose files
    are quantised.
    """
    if version.facts.method == MERGED:
        raise BadInput(
            f"{version.ref} is a merged model, and no adapter", hint=f"look at it: loradock show {version.ref}"
        )
    if local.quantized or local.marked:
        told = "are quantised" if local.quantized else "are said to be quantised by its config.json"
        raise BadInput(f"the files of {local.base.id} {told}", hint="give --base the model that is not")
    shapes = check.read_shapes(local.path)
    with versions.fetched(store, version) as directory, scratch() as aside:
        artifact.verify(directory, version.facts.digest, what=str(version.ref))
        method = str(check.read_config(directory).get("peft_type")).lower()
        found = check.examine(directory, base=shapes)
        if any(finding.code == "not-lora" and not finding.remedy for finding in found.findings):
            raise Refused(
                f"{version.ref} was trained by {method}, which leaves the base's weights as they are",
                hint="only a change of weights can be merged or converted: train with another of `loradock methods`",
            )
        if hopeless := [finding.text for finding in found.blocking if not finding.remedy]:
            raise NotServable(str(version.ref), hopeless, hint=_HOPELESS)
        if not {finding.remedy for finding in found.blocking} & set(check.MENDINGS):
            yield Parent(version, directory, method, found)
            return
        done = mend(directory, aside / "mended", found, base=shapes, max_rank=check.MAX_RANK)
        if done is None:
            raise NotServable(str(version.ref), [finding.text for finding in found.blocking], hint=_HOPELESS)
        yield Parent(version, aside / "mended", method, done.diagnosis, done.mendings, done.largest)
