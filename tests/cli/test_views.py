from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from loradock.cli.diff import diff
from loradock.cli.list import list_
from loradock.cli.show import show
from loradock.registry import promotion
from loradock.registry.errors import BadInput, NotFound, Taken
from loradock.registry.store import Store
from tests.support.adapters import NAME, make_version, ref


@pytest.fixture
def whole(settings: Any) -> Store:
    return Store(settings)


@pytest.fixture
def seven(whole: Store, tmp_path: Path) -> Store:
    """A family of seven versions, the third in production."""
    for seed in range(7):
        make_version(whole, tmp_path / str(seed), seed=seed, rank=2 if seed == 6 else 4)
    promotion.promote(whole, ref(3), "production", actor="ann", reason="calmer")
    return whole


def said(command: click.Command, *words: str) -> Any:
    return CliRunner().invoke(command, words, catch_exceptions=False)


def answer(command: click.Command, *words: str) -> Any:
    return json.loads(said(command, *words, "--json").stdout)


def numbers(rows: list[dict[str, Any]]) -> list[int]:
    return [int(row["version"].partition("/")[2]) for row in rows]


def test_a_page_is_the_newest_or_next_below_or_above(seven: Store) -> None:
    def page(**bounds: int) -> list[int]:
        return [version.ref.number for version in seven.page(NAME, **bounds)]

    assert page() == [7, 6, 5, 4, 3, 2, 1]
    assert page(limit=3) == [7, 6, 5]
    assert page(limit=3, before=5) == [4, 3, 2]
    assert page(limit=3, before=2) == [1]
    assert page(limit=2, after=3) == [5, 4]
    assert page(limit=2, after=7) == []
    assert seven.page("nobody") == ()


def test_pages_leave_out_what_is_deleted_and_what_is_not_ours(seven: Store) -> None:
    seven.client.delete_model_version(NAME, "6")
    seven.client.create_model_version(NAME, "s3://bucket/of-somebody-else", await_creation_for=0)
    assert numbers(answer(list_, NAME, "--page-size", "3")) == [7, 5, 4]
    assert [version.ref.number for version in seven.page(NAME, limit=2, after=5)] == [7]


def test_list_shows_a_page_newest_first_and_says_how_to_go_on(seven: Store) -> None:
    rows = answer(list_, NAME, "--page-size", "5")
    assert numbers(rows) == [7, 6, 5, 4, 3]
    assert [row["aliases"] for row in rows] == [[], [], [], [], ["production"]]
    assert (rows[0]["rank"], rows[1]["rank"]) == (2, 4)
    assert (rows[0]["servable"], rows[0]["findings"], rows[0]["method"]) == ("unknown", [], "lora")
    first = said(list_, NAME, "--page-size", "5")
    assert f"loradock list {NAME} --before 3" in first.stderr
    assert "support-bot/7" in first.stdout
    last = said(list_, NAME, "--page-size", "5", "--before", "3")
    assert last.stderr == ""
    assert "support-bot/1" in last.stdout


def test_list_refuses_a_registered_model_of_something_else(seven: Store) -> None:
    seven.client.create_registered_model("forest")
    assert isinstance(CliRunner().invoke(list_, ["forest"]).exception, Taken)


def test_list_without_a_name_has_every_family(seven: Store, tmp_path: Path) -> None:
    make_version(seven, tmp_path / "other", "other-bot", seed=9)
    assert answer(list_) == [
        {"name": "other-bot", "aliases": {}},
        {"name": "support-bot", "aliases": {"production": 3}},
    ]


def test_pages_that_cannot_be_meant(seven: Store) -> None:
    for words in (["--before", "3"], ["--page-size", "3"], [NAME, "--before", "3", "--after", "1"]):
        with pytest.raises(BadInput):
            said(list_, *words)
    with pytest.raises(NotFound, match="nobody"):
        said(list_, "nobody")


def test_show_has_the_facts_and_the_graph(seven: Store) -> None:
    found = answer(show, NAME)
    assert (found["version"], found["aliases"], found["facts"]["rank"]) == ("support-bot/3", ["production"], 4)
    assert found["graph"]["nodes"][0]["id"] == "support-bot/3"
    shown = said(show, NAME)
    assert shown.stderr == ""
    assert "by ann: calmer" in shown.stdout
    assert "made by" in shown.stdout


def test_diff_for_a_person_and_for_a_program(seven: Store) -> None:
    found = answer(diff, f"{NAME}/6", f"{NAME}/7")
    assert found["facts"]["rank"] == [4, 2]
    assert found["config"]["r"] == [4, 2]
    assert len(found["weights"]["modules"]) == 4
    shown = said(diff, f"{NAME}/6", f"{NAME}/7")
    assert "config.lora_alpha" in shown.stdout
    assert "all modules" in shown.stdout
    same = answer(diff, NAME, f"{NAME}/3")
    assert same["weights"]["total"]["distance"] < 1e-12
    assert same["weights"]["total"]["cosine"] == pytest.approx(1)
    assert not any(same[group] for group in ("facts", "base", "recipe", "data", "metrics", "config"))


def test_what_looks_like_markup_is_printed_as_it_is(seven: Store) -> None:
    promotion.promote(seven, ref(4), "production", actor="ann", reason="[/b] calmer [red]")
    seven.client.log_param(seven.version(ref(4)).facts.run_id, "recipe.name", "[/b]")
    assert "by ann: [/b] calmer [red]" in said(show, NAME).stdout
    assert "[/b]" in said(diff, f"{NAME}/3", f"{NAME}/4").stdout
