"""The newest entry of each family's history that was seen: a history without it was cut, or is another one.

Each machine remembers it in a file of its own, and whoever writes an entry also in MLflow, in a tag of the family and,
for a move, in one of the version. A remembered head never counts against a history that has it, however old it is. One
that a history does not reach is asked for again, since MLflow may answer with what was true a moment ago.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from pydantic import TypeAdapter, ValidationError

from loradock.registry import scratch
from loradock.registry.errors import HistoryCut
from loradock.registry.history import History, link, read
from loradock.registry.records import Acceptance, Entry, Record, canonical_json
from loradock.registry.settings import Settings
from loradock.registry.store import Store

_PAUSES: Final = (0.0, 0.1, 0.4)
"""Seconds before a history that ends too early is read again."""

log = logging.getLogger(__name__)


class Head(Record):
    """The newest entry of a history, as somebody has seen it."""

    seq: int
    digest: str
    """Its SHA-256, as the entry after it has it."""
    run: str
    """The run in which the history begins."""
    accepted: str = ""
    """The SHA-256 of the history's last acceptance by then; empty where there was none."""


_HEADS: Final = TypeAdapter(dict[str, Head])


@dataclass(frozen=True, slots=True)
class Lack:
    """What a history does not have."""

    text: str
    late: bool
    """Whether the history may be read too early, and not be cut."""


class Memory:
    """The heads that this machine has seen of one registry; any number of processes may share it.

    A file that cannot be read or written is warned of, and ends nothing.
    """

    def __init__(self, settings: Settings) -> None:
        self._path = settings.root / f"heads-{settings.which}.json"

    def all(self) -> Mapping[str, Head]:
        """By family."""
        try:
            return _HEADS.validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            log.warning(
                "warning: the heads in %s cannot be read; no history is held against them: %s", self._path, error
            )
            return {}

    def keep(self, heads: Mapping[str, Head]) -> None:
        """Remember heads that their histories were seen to have, but none that is older than what is remembered."""
        try:
            with self._alone():
                known = self.all()
                newer = {name: head for name, head in heads.items() if not _older(head, known.get(name))}
                if newer.items() - known.items():
                    scratch.replace(self._path, _written({**known, **newer}))
        except OSError as error:  # a full disk must not stop a promotion, or a replica that can serve
            log.warning("warning: the heads of histories cannot be kept in %s: %s", self._path, error)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _older(head: Head, known: Head | None) -> bool:
    """Whether one of the same history was seen that is as new or newer."""
    return known is not None and (known.run, known.accepted) == (head.run, head.accepted) and known.seq >= head.seq


def _written(heads: Mapping[str, Head]) -> str:
    return canonical_json({name: head.model_dump() for name, head in heads.items()})


def head(past: History) -> Head | None:
    """A history's newest entry; None where it has none."""
    if not past.entries:
        return None
    accepted = link(past.text(past.accepted.seq)) if past.accepted else ""
    return Head(seq=past.end - 1, digest=link(past.last), run=past.family.ledger, accepted=accepted)


def after(past: History, entry: Entry, text: str) -> Head:
    """The head of a history once another entry is written."""
    before = head(past)
    accepted = link(text) if isinstance(entry, Acceptance) else before.accepted if before else ""
    return Head(seq=entry.seq, digest=link(text), run=past.family.ledger, accepted=accepted)


def lack(past: History, seen: Head) -> Lack | None:
    """Why a history does not go on from a head; None where it does, or too little of it was read to say."""
    if not seen.run:
        return Lack("cannot be compared with it: the tag was overwritten", late=False)
    if past.family.ledger != seen.run:
        begins = f"begins in run {past.family.ledger}" if past.family.ledger else "is named by no tag"
        return Lack(f"{begins}, and began in run {seen.run}", late=False)
    if seen.seq >= past.end:
        ends = f"ends with entry {past.end - 1}" if past.entries else "has no entry"
        return Lack(f"{ends}, and went on to entry {seen.seq}", late=True)
    text = past.text(seen.seq)
    return Lack(f"has another entry {seen.seq} than before", late=False) if text and link(text) != seen.digest else None


def acceptance(past: History, seen: Head) -> Acceptance | None:
    """The entry by which somebody has since accepted that a history does not go on from a head."""
    found = past.accepted
    return found if found and link(past.text(found.seq)) != seen.accepted else None


def current(store: Store, name: str, *, whole: bool = True, alias: str = "") -> History:
    """A family's history for whoever goes on with it; raises what `history.read` does, and HistoryCut."""
    return checked(store, read(store, name, whole=whole, alias=alias))


def checked(store: Store, past: History) -> History:
    """A history, read again where that was too early; raises HistoryCut where it lacks what was seen of it."""
    name, memory = past.family.name, Memory(store.settings)
    here = memory.all().get(name)
    known = _known(store, past, here)
    for pause in (*_PAUSES, None):
        found = _lacks(store, past, known)
        late = all(fault.late for fault in found.values())
        if not found or pause is None or not late:
            break
        time.sleep(pause)
        past = read(store, name, whole=past.whole, alias=past.alias)
    if found:
        by, fault = next(iter(found.items()))
        raise HistoryCut(name, by, fault.text)
    if here and (missing := lack(past, here)) and (accepted := acceptance(past, here)):
        log.warning("warning: %s", told(name, missing, accepted))
    if (now := head(past)) and now != here:
        memory.keep({name: now})
    return past


def lacks(store: Store, past: History) -> tuple[str, ...]:
    """All that was seen of a history, and is neither in it nor accepted as missing."""
    found = _lacks(store, past, _known(store, past, Memory(store.settings).all().get(past.family.name)))
    return tuple(f"from what {by}: it {fault.text}" for by, fault in found.items())


def _known(store: Store, past: History, here: Head | None) -> Mapping[str, Head]:
    """By who has seen it, each head."""
    known = {"this machine has seen": here} if here else {}
    return known | {f"the tag of {thing} has": parse(text) for thing, text in store.told(past.family).items()}


def _lacks(store: Store, past: History, known: Mapping[str, Head]) -> Mapping[str, Lack]:
    here = known.get("this machine has seen")
    if here and here.run == past.family.ledger and here.seq < past.end and not past.text(here.seq):
        past = read(store, past.family.name, alias=past.alias)  # it is older than the end that was read
    found = {by: fault for by, seen in known.items() if (fault := lack(past, seen))}
    return {by: fault for by, fault in found.items() if acceptance(past, known[by]) is None}


def told(name: str, fault: Lack, accepted: Acceptance) -> str:
    """What is said of a history that somebody has accepted as it is."""
    by = f"{accepted.actor} accepted that on {accepted.at:%Y-%m-%d}: {accepted.reason}"
    return f"the history of {name} {fault.text}; {by}"


def parse(text: str) -> Head:
    """A head from a tag; one without a run, which no history has, for a tag that somebody wrote over."""
    try:
        return Head.model_validate_json(text)
    except ValidationError:
        return Head(seq=0, digest="", run="")
