"""What stands beside the loop hands every measurement on once, and stops on a loss that is no number."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from loradock.trainer.curves import Curves
from loradock.trainer.watch import Diverged, Watch


def state(step: int, tokens: int = 0) -> Any:
    return SimpleNamespace(global_step=step, max_steps=10, num_input_tokens_seen=tokens)


def test_training_and_evaluation_are_handed_on_with_their_steps() -> None:
    seen: list[tuple[int, Mapping[str, float]]] = []
    watch = Watch(curves := Curves(), lambda step, values: seen.append((step, values)))
    watch.on_log(None, state(0), None, {"eval_loss": 3.0, "eval_runtime": 1.0})
    watch.on_step_begin(None, state(0), None)
    watch.on_step_end(None, state(1, tokens=100), SimpleNamespace())
    watch.on_log(None, state(1, tokens=100), None, {"loss": 2.0, "learning_rate": 0.1, "entropy": 1.0})
    watch.on_log(None, state(1), None, {"train_runtime": 9.0, "train_loss": 2.0})
    assert seen[0] == (0, {"eval_loss": 3.0})
    assert [(step, set(values)) for step, values in seen[1:]] == [(1, {"loss", "learning_rate", "tokens_per_second"})]
    assert (curves.first("eval_loss"), curves.last("loss")) == (3.0, 2.0)
    assert watch.tokens_per_second == seen[1][1]["tokens_per_second"] > 0


@pytest.mark.parametrize("name", ["loss", "eval_loss", "grad_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_finite_number_stops_it(name: str, value: float) -> None:
    watch = Watch(Curves(), lambda *_: pytest.fail("it must not be logged"))
    with pytest.raises(Diverged, match=f"{name} is no finite number at step 7") as raised:
        watch.on_log(None, state(7), None, {"loss": 1.0, name: value})
    assert (raised.value.exit_code, raised.value.step) == (1, 7)
    assert "learning_rate" in raised.value.hint


def test_the_tokens_of_an_earlier_start_count_for_no_speed() -> None:
    watch = Watch(Curves(), lambda *_: None)
    watch.on_train_begin(None, state(4, tokens=1000), None)
    watch.on_step_begin(None, state(4, tokens=1000), None)
    watch.on_step_end(None, state(5, tokens=1000), SimpleNamespace())
    watch.on_log(None, state(5, tokens=1000), None, {"loss": 2.0})
    assert watch.tokens_per_second == 0


def test_the_last_step_is_reported_evaluated_and_saved() -> None:
    watch = Watch(Curves(), lambda *_: None)
    watch.on_step_begin(None, state(9), None)
    watch.on_step_end(None, state(9), early := SimpleNamespace())
    watch.on_step_end(None, state(10), late := SimpleNamespace())
    assert (vars(early), vars(late)) == ({}, dict.fromkeys(("should_log", "should_evaluate", "should_save"), True))


def test_tokens_count_though_no_report_follows() -> None:
    watch = Watch(Curves(), lambda *_: None)
    watch.on_train_begin(None, state(0), None)
    for step in (1, 2, 3):
        watch.on_step_begin(None, state(step - 1, tokens=100 * step - 100), None)
        watch.on_step_end(None, state(step, tokens=100 * step), SimpleNamespace())
    assert watch.tokens == 300
    assert watch.tokens_per_second > 0


def losses(*values: float) -> int:
    """The step at which these losses stop a training; 0 when they do not."""
    watch = Watch(Curves(), lambda *_: None)
    for step, value in enumerate(values, 1):
        try:
            watch.on_log(None, state(step), None, {"loss": value})
        except Diverged as error:
            return error.step
    return 0


def test_a_loss_that_explodes_says_from_where_to_where() -> None:
    watch = Watch(Curves({"loss": [(1, 1.5), (2, 6.0), (3, 7.0)]}), lambda *_: None)
    with pytest.raises(Diverged, match=r"loss rose from 1\.50 to 8\.00 at step 4"):
        watch.on_log(None, state(4), None, {"loss": 8.0})


def test_a_loss_that_explodes_stops_it_and_a_bad_batch_does_not() -> None:
    assert losses(2.0, 1.5, 5.0, 7.0, 9.0, 11.0) == 5
    assert losses(2.0, 1.5, 9.0, 1.6, 9.0, 9.0, 1.5) == 0
    assert losses(12.0, 11.0, 12.0, 13.0, 13.5) == 0
