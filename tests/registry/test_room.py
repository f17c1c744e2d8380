"""Whether a version fits the replicas that would serve it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from loradock.registry.records import Base, Facts, TextSettings, Version
from loradock.registry.refs import VersionRef
from loradock.registry.replica_status import read
from loradock.registry.room import Room, fit
from tests.support.adapters import SMOL
from tests.support.serving.status import NOTHING, answering

OTHER = Base(id="other", config_digest="1" * 64, weights_digest="2" * 64)


def version(name: str = "bot", number: int = 2, rank: int = 8) -> Version:
    facts = Facts(digest="a" * 64, base=SMOL, method="lora", rank=rank, targets=(), run_id="", data_digest="")
    return Version(ref=VersionRef(name, number), facts=facts, source="models:/m-1", created_at=datetime.now(UTC))


def room(url: str = "http://a", **changes: Any) -> Room:
    bot = {"bot": answering("bot/1", promoted="bot/1")}
    return Room(url, read(NOTHING | {"adapters": bot} | changes, url))


def many(count: int) -> Mapping[str, Any]:
    return {f"cat-{number}": answering(f"cat-{number}/1") for number in range(count)}


def test_what_fits_is_not_spoken_of() -> None:
    assert fit(version(), "production", [room(), room("http://b")]) == fit(version(), "production", [])


def test_a_template_that_is_another_one_at_a_replica_is_warned_of() -> None:
    facts = version().facts.model_copy(update={"text": TextSettings(tokenizer="t", template="a")})
    trained = version().model_copy(update={"facts": facts})
    other = NOTHING["base"] | {"text": {"tokenizer": "t", "template": "b", "generation": "g"}}
    found = fit(
        trained, "production", [room(base=other), room("http://b"), room("http://c", base=other | {"text": {}})]
    )
    assert found.warnings == ("bot/2 was trained with another chat template than its base has here, at http://a",)
    assert found.refusal == ""


def test_a_rank_above_every_replicas_limit_is_refused() -> None:
    found = fit(version(rank=64), "production", [room(), room("http://b", max_rank=32)])
    assert found.refusal == "bot/2 has rank 64, above the 32 that every replica of its base was started for"


def test_a_rank_above_the_limit_of_some_is_warned_of() -> None:
    found = fit(version(rank=32), "production", [room(), room("http://b", max_rank=32)])
    assert found.refusal == ""
    assert [warning for warning in found.warnings if "http://a" in warning and "quarantined" in warning] == [
        *found.warnings
    ]


@pytest.mark.parametrize("elsewhere", [room(base=NOTHING["base"] | OTHER.model_dump()), room(aliases=["staging"])])
def test_a_replica_that_would_not_load_it_has_no_say(elsewhere: Room) -> None:
    assert fit(version(rank=64), "production", [elsewhere]).refusal == ""
    assert fit(version(rank=64), "production", [elsewhere, room()]).refusal != ""


@pytest.mark.parametrize(("others", "told"), [(2, []), (3, ["4 slots"]), (7, ["4 slots", "keeps 8"])])
def test_the_old_and_the_new_version_of_a_move_both_count(others: int, told: list[str]) -> None:
    crowd = {"bot": answering("bot/1", promoted="bot/1"), **many(others)}
    warnings = fit(version(), "production", [room(adapters=crowd)]).warnings
    assert len(warnings) == len(told)
    for warning, part in zip(warnings, told, strict=True):
        assert part in warning
        assert f"bot/2 beside bot/1 http://a has {others + 2} adapters" in warning


def test_adapters_that_are_cold_count() -> None:
    cold = {f"cat-{number}": f"cat-{number}/1" for number in range(3)}
    assert len(fit(version(), "canary", [room(cold=cold)]).warnings) == 1


def test_a_version_that_is_served_under_another_alias_needs_no_room() -> None:
    crowd = {"bot": answering("bot/1", promoted="bot/1"), **many(20)}
    assert fit(version(number=1), "canary", [room(adapters=crowd)]).warnings == ()
