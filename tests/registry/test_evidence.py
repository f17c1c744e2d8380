"""Evidence is what was found, or none: complete, its own bytes, of the version that is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from loradock.registry.errors import DigestMismatch
from loradock.registry.evidence import Evidence, Scores, mean, paired_bootstrap
from loradock.registry.store import Store
from loradock.registry.store.evidence import EXPERIMENT
from tests.support.registry.killed import Killed

NAME, DIGEST = "support-bot", "a" * 64


def evidence(run_id: str, **changes: Any) -> Evidence:
    loss = Scores(better="lower", weighted=True, candidate=(1.0, 2.0), incumbent=(1.5, 2.5), base=(3.0, 3.0))
    match = Scores(better="higher", weighted=False, candidate=(1.0, 0.0), base=(0.0, 0.0))
    values = {
        "run_id": run_id,
        "name": NAME,
        "candidate": DIGEST,
        "incumbent": "b" * 64,
        "base": "c" * 64,
        "data_digest": "d" * 64,
        "at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "metrics": {"loss": loss, "exact_match": match},
        "weights": (3.0, 1.0),
        "rows": ("1" * 64, "2" * 64),
    }
    return Evidence.model_validate(values | changes)


def recorded(store: Store, **changes: Any) -> Evidence:
    found = evidence(store.begin_evaluation("support-bot/3 on rows"), **changes)
    store.record_evidence(found, incumbent_version="support-bot/2", table={"row": [1, 2], "prompt": ["a", "b"]})
    store.client.set_terminated(found.run_id)
    return found


def test_a_mean_counts_rows_by_their_weights() -> None:
    assert mean([1, 2]) == 1.5
    assert mean([1, 2], [3, 1]) == 1.25


def test_a_metric_is_told_by_its_own_mean_and_perplexity_by_the_loss() -> None:
    found = evidence("run")
    assert found.value("loss", "candidate") == 1.25
    assert found.value("exact_match", "candidate") == 0.5
    assert found.value("exact_match", "incumbent") is None
    assert found.value("rouge", "candidate") is None
    assert found.value("perplexity", "base") == pytest.approx(math.exp(3))


def test_the_bootstrap_finds_the_difference_and_an_interval_that_normal_theory_gives_too() -> None:
    random = np.random.default_rng(1)
    theirs = random.normal(2, 1, 400)
    noise = random.normal(-0.1, 0.5, 400)
    found = paired_bootstrap(list(theirs + noise), list(theirs))
    error = float(noise.std(ddof=1)) / 20
    assert found.mean == pytest.approx(float(noise.mean()))
    assert found.low == pytest.approx(float(noise.mean()) - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(float(noise.mean()) + 1.96 * error, abs=0.1 * error)


def test_the_bootstrap_holds_its_confidence() -> None:
    """Of intervals over draws from a known truth, about as many cover it as they say."""
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        difference, weights = random.exponential(1, 60), random.uniform(1, 3, 60)
        found = paired_bootstrap(list(difference), [0.0] * 60, list(weights), resamples=400)
        covered += found.low <= 1 <= found.high
    assert 0.88 <= covered / 300 <= 0.98


def test_the_bootstrap_is_the_same_again_and_does_not_depend_on_how_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs, weights = [1.0, 2.0, 4.0], [1.5, 2.5, 3.0], [1.0, 5.0, 2.0]
    found = paired_bootstrap(ours, theirs, weights)
    monkeypatch.setattr("loradock.registry.evidence._DRAWN", 7)
    assert paired_bootstrap(ours, theirs, weights) == found


def test_equal_rows_have_no_difference_and_no_rows_no_interval() -> None:
    found = paired_bootstrap([1.0, 2.0], [1.0, 2.0])
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_bootstrap([], [])
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_bootstrap([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    "changes",
    [{"weights": (1.0,)}, {"weights": (), "metrics": {}, "rows": ()}, {"rows": ("1",)}, {"weights": (1.0, math.nan)}],
)
def test_values_that_do_not_belong_to_the_rows_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        evidence("run", **changes)


def test_what_was_recorded_is_found_newest_first(store: Store) -> None:
    first, second = recorded(store), recorded(store, through="endpoint")
    assert store.find_evidence(NAME, DIGEST) == (second, first)
    assert store.find_evidence("other", DIGEST) == ()
    assert store.find_evidence(NAME, "f" * 64) == ()


def test_nothing_was_ever_evaluated(store: Store) -> None:
    assert store.find_evidence(NAME, DIGEST) == ()
    assert store.client.get_experiment_by_name(EXPERIMENT) is None


def test_a_person_finds_figures_table_and_data_in_the_run(store: Store) -> None:
    found = recorded(store)
    run = store.client.get_run(found.run_id)
    assert run.info.run_name == "support-bot/3 on rows"
    assert run.data.metrics.items() >= {"candidate/loss": 1.25, "incumbent/loss": 1.75, "base/exact_match": 0}.items()
    assert run.data.metrics["candidate/perplexity"] == pytest.approx(math.exp(1.25))
    assert (
        run.data.tags.items()
        >= {
            "loradock.evidence.name": NAME,
            "loradock.evidence.candidate": DIGEST,
            "loradock.evidence.incumbent_version": "support-bot/2",
            "loradock.evidence.rows": "2",
            "loradock.evidence.state": "complete",
        }.items()
    )
    assert {item.path for item in store.client.list_artifacts(found.run_id)} == {"evidence.json", "rows.json"}
    assert run.inputs.dataset_inputs[0].dataset.digest == "d" * 36


@pytest.mark.parametrize("step", ["log_inputs", "log_batch", "log_table", "log_text", "set_tag"])
def test_an_evaluation_that_is_killed_at_any_step_is_no_evidence(
    store: Store, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise Killed

    monkeypatch.setattr(store.client, step, die)
    with pytest.raises(Killed):
        recorded(store)
    monkeypatch.undo()
    assert store.find_evidence(NAME, DIGEST) == ()


def edit(path: Path) -> None:
    path.write_text(path.read_text().replace("[1.0,2.0]", "[0.1,0.2]", 1))


def cut(path: Path) -> None:
    path.write_text(path.read_text()[:-9])


@pytest.mark.parametrize(
    ("harm", "said"), [(edit, "changed"), (cut, "cannot be read"), (Path.unlink, "evidence.json is missing")]
)
def test_evidence_that_was_changed_afterwards_is_refused(store: Store, harm: Callable[[Path], None], said: str) -> None:
    found = recorded(store)
    path = Path(store.client.get_run(found.run_id).info.artifact_uri.removeprefix("file://")) / "evidence.json"
    harm(path)
    with pytest.raises(DigestMismatch, match=said) as raised:
        store.find_evidence(NAME, DIGEST)
    assert "evaluate again" in raised.value.hint


def test_evidence_of_one_version_cannot_be_tagged_as_another_s(store: Store) -> None:
    found = recorded(store)
    store.client.set_tag(found.run_id, "loradock.evidence.candidate", "f" * 64)
    with pytest.raises(DigestMismatch, match="its tags name another version"):
        store.find_evidence(NAME, "f" * 64)


def test_parameters_of_a_run_that_is_gone(store: Store) -> None:
    found = recorded(store)
    assert "evidence.digest" in store.parameters_of(found.run_id)
    assert store.parameters_of("0" * 32) == {}
