"""What a replica reports, from its JSON to a frozen value and back; and what is no such report."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from loradock.registry.errors import NotFound
from loradock.registry.refs import VersionRef
from loradock.registry.replica_status import read
from tests.support.serving.status import NOTHING, STATUS

URL = "http://a"


def test_it_is_read_into_refs_and_written_as_it_was() -> None:
    status = read(STATUS, URL)
    assert status.adapters["bot"].version == VersionRef("bot", 1)
    assert status.quarantined[VersionRef("bot", 2)].reason == "no effect"
    assert json.loads(json.dumps(status.as_json())) == STATUS
    with pytest.raises(ValidationError, match="frozen"):
        status.ready = False  # type: ignore[misc]


def test_what_a_later_replica_adds_is_left_aside() -> None:
    assert read(NOTHING | {"weather": "fine"}, URL) == read(NOTHING, URL)


@pytest.mark.parametrize(("number", "shown"), [(None, "none"), (2, "2"), ("1", "1")])
def test_another_format_is_another_version_of_loradock(number: Any, shown: str) -> None:
    with pytest.raises(NotFound, match=f"{URL} is of another version of loradock: .* format {shown}") as raised:
        read(NOTHING | {"format": number}, URL)
    assert raised.value.hint == "use the same version of loradock here and there"


@pytest.mark.parametrize("found", [None, [], {}, "<html>"])
def test_what_is_no_report_is_of_no_replica(found: Any) -> None:
    with pytest.raises(NotFound, match="not as a loradock replica"):
        read(found, URL)


@pytest.mark.parametrize("gone", ["slots", "capacity", "max_rank", "cold", "base", "quarantined"])
def test_a_report_without_a_part_is_refused_with_the_part(gone: str) -> None:
    with pytest.raises(NotFound, match=f"not as a loradock replica: {gone}"):
        read({part: value for part, value in NOTHING.items() if part != gone}, URL)


def test_a_version_that_is_none_is_refused() -> None:
    with pytest.raises(NotFound, match="'bot' is not a version"):
        read(NOTHING | {"loading": ["bot"]}, URL)
