"""Who gave each answer, and whether it should have: pure counting.

An answer is right when it came whole, from one version of the name that was asked, in that version's own words, and
that version stood at the name on this server at some moment between the request's sending and the answer's first token.
Loradock's answers name their version, in every chunk; vLLM's own do not, so there the words alone tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.flip.flips import Flipped
from benchmarks.flip.load import Answer
from benchmarks.flip.words import Words

RIGHT, FAILED, MIXED = "right", "failed", "mixed"
FOREIGN, LATE, CHANGED = "another adapter", "wrong version", "base changed"
WRONG = (FAILED, MIXED, FOREIGN, LATE, CHANGED)
BAD = "by a damaged version or one without effect"

_TRUNCATED = 0.001
"""Seconds: a replica tells its times in whole milliseconds."""


@dataclass(frozen=True, slots=True)
class Stood:
    """A time for which a version could answer for a name."""

    version: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Judged:
    """An answer and what was found of it."""

    answer: Answer
    verdict: str
    version: str
    """The version that gave it; empty where nobody can tell."""


def where(flipped: Sequence[Flipped], start: Mapping[str, str], *, named: bool) -> dict[str, list[Stood]]:
    """By name, which version could answer when; `start` is where each name stood first.

    A replica says when it moved a name (`named`). A call to vLLM moves it somewhere between its beginning and its
    success, so there both versions may answer meanwhile.
    """
    stood: dict[str, list[Stood]] = {}
    for name, first in start.items():
        moves = [move for move in flipped if move.flip.to.name == name and move.since is not None]
        begun = [0.0, *(_since(move) if named else move.at for move in moves)]
        ended = [*(_since(move) + _TRUNCATED if named else move.told for move in moves), float("inf")]
        versions = [first, *(str(move.flip.to) for move in moves)]
        stood[name] = [Stood(*one) for one in zip(versions, begun, ended, strict=True)]
    return stood


def _since(move: Flipped) -> float:
    assert move.since is not None
    return move.since


def judge(answer: Answer, words: Words, stood: Mapping[str, Sequence[Stood]], base: str, *, named: bool) -> Judged:
    """What one answer is."""
    if answer.error:
        return Judged(answer, FAILED, "")
    target, owners = answer.ask.target, words.owners(answer.ask, answer.text)
    said = {*answer.models, *([answer.header] if named and answer.header else [])}
    if len(said) != 1:
        return Judged(answer, MIXED, "")
    if target == base:
        right = base in owners and said == {base}
        return Judged(answer, RIGHT if right else CHANGED, base if right else "")
    verdict, version = _by_name(target, said.pop(), owners) if named else _by_words(target, owners)
    in_time = any(
        one.version == version and one.start <= answer.first and answer.sent <= one.end for one in stood[target]
    )
    return Judged(answer, LATE if verdict == RIGHT and not in_time else verdict, version)


def _by_name(target: str, said: str, owners: frozenset[str]) -> tuple[str, str]:
    """By the version that an answer names, whose words it has to have."""
    if _family(said) != target:
        return FOREIGN, said
    if said in owners:
        return RIGHT, said
    return _by_words(target, owners)[0] if not _of(target, owners) else MIXED, ""


def _by_words(target: str, owners: frozenset[str]) -> tuple[str, str]:
    """By whose words they are; nobody's are those of a mix."""
    if mine := _of(target, owners):
        return RIGHT, mine[0]
    return FOREIGN if owners else MIXED, ""


def _of(target: str, owners: frozenset[str]) -> list[str]:
    return sorted(who for who in owners if _family(who) == target)


def _family(who: str) -> str:
    return who.partition("/")[0]


def counts(judged: Sequence[Judged], bad: frozenset[str]) -> dict[str, int]:
    """How many answers there were, and how many of each that must be none."""
    found = Counter(one.verdict for one in judged)
    return {
        "answers": len(judged),
        "of them streams": sum(one.answer.ask.stream for one in judged),
        **{name: found[name] for name in WRONG},
        BAD: sum(one.version in bad for one in judged),
    }
