"""What is kept of calls that ended: no text, no base, a bounded number, in pages that lose nothing."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from loradock.registry.refs import VersionRef
from loradock.serving import signals
from loradock.serving.calls import Asked, Call, Outcome
from loradock.serving.signals import Signals


def call(
    name: str = "bot",
    number: int | None = 3,
    *,
    first: float | None = 10.5,
    tokens: int = 5,
    outcome: Outcome = "ok",
    finish: str = "stop",
) -> Call:
    version = VersionRef(name, number) if number else None
    asked = Asked(name, "production", "a-key")
    return Call(asked, version, 10.0, first, 12.5, 7, tokens, tokens, outcome, finish)


def test_a_call_is_told_with_what_was_measured_and_nothing_else() -> None:
    kept = Signals(now=lambda: 1000.0)
    kept.ended(call())
    (row,) = kept.page("bot", 0).rows
    assert asdict(row) == {
        "seq": 1,
        "name": "bot",
        "version": 3,
        "role": "production",
        "started": 997.5,
        "outcome": "ok",
        "finish": "stop",
        "first_token": 0.5,
        "per_token": 0.5,
        "seconds": 2.5,
        "prompt_tokens": 7,
        "output_tokens": 5,
    }
    assert json.loads(json.dumps(asdict(row))) == asdict(row)


@pytest.mark.parametrize(
    ("ended", "first", "per"),
    [
        (call(outcome="error", first=None, tokens=0, finish=""), None, None),
        (call(outcome="aborted", finish=""), 0.5, None),
        (call(tokens=1), 0.5, None),
    ],
)
def test_what_a_call_did_not_come_to_is_not_measured(ended: Call, first: float | None, per: float | None) -> None:
    kept = Signals()
    kept.ended(ended)
    (row,) = kept.page("bot", 0).rows
    assert (row.first_token, row.per_token, row.outcome) == (first, per, ended.outcome)


def test_the_bases_own_calls_are_not_kept() -> None:
    kept = Signals()
    kept.ended(call("smol", None))
    assert kept.page("smol", 0).rows == ()


def read(kept: Signals, name: str, since: int = 0) -> tuple[list[Any], int, int]:
    rows, pages = [], 0
    while True:
        page = kept.page(name, since)
        rows += page.rows
        since, pages = page.next, pages + 1
        if not page.more:
            return [row.seq for row in rows], since, pages


def test_pages_lose_nothing_and_tell_of_one_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_PAGE", 3)
    kept = Signals()
    for number in range(8):
        kept.ended(call("bot" if number % 2 else "cat"))
    assert read(kept, "bot") == ([2, 4, 6, 8], 8, 3)
    assert read(kept, "bot", 8) == ([], 8, 1)
    kept.ended(call("bot"))
    assert read(kept, "bot", 8) == ([9], 9, 1)
    assert read(kept, "dog") == ([], 9, 3)


def test_the_ring_is_bounded_and_says_what_it_forgot() -> None:
    kept = Signals(kept=4)
    for _ in range(10):
        kept.ended(call())
    assert kept.page("bot", 3).oldest == 7
    assert read(kept, "bot", 3)[0] == [7, 8, 9, 10]


def test_a_place_that_another_process_gave_is_not_taken_for_ours() -> None:
    first, second = Signals(), Signals()
    assert first.process != second.process
    second.ended(call())
    assert second.page("bot", 500).rows == ()
    assert second.page("bot", 500).next == 1
