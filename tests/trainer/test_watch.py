"""What stands beside the loop hands every measurement on once, and stops on a loss that is no number."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.curves import Curves
from trainer.watch import Diverged, Watch


def state(step: int) -> Any:
    return SimpleNamespace(global_step=step, max_steps=10)


def test_training_and_evaluation_are_handed_on_with_their_steps() -> None:
    seen: list[tuple[int, Mapping[str, float]]] = []
    watch = Watch(curves := Curves(), lambda step, values: seen.append((step, values)))
    watch.on_log(None, state(0), None, {"eval_loss": 3.0, "eval_runtime": 1.0, "num_tokens": 0})
    watch.on_step_begin(None, state(0), None)
    watch.on_step_end(None, state(1), None)
    watch.on_log(None, state(1), None, {"loss": 2.0, "learning_rate": 0.1, "num_tokens": 100, "entropy": 1.0})
    watch.on_log(None, state(1), None, {"train_runtime": 9.0, "train_loss": 2.0})
    assert seen[0] == (0, {"eval_loss": 3.0})
    assert [(step, set(values)) for step, values in seen[1:]] == [
        (1, {"loss", "learning_rate", "num_tokens", "tokens_per_second"})
    ]
    assert (curves.first("eval_loss"), curves.last("loss")) == (3.0, 2.0)
    assert (watch.tokens, watch.seconds > 0) == (100, True)


@pytest.mark.parametrize("name", ["loss", "eval_loss", "grad_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_finite_number_stops_it(name: str, value: float) -> None:
    watch = Watch(Curves(), lambda *_: pytest.fail("it must not be logged"))
    with pytest.raises(Diverged, match=f"{name} is no finite number at step 7") as raised:
        watch.on_log(None, state(7), None, {"loss": 1.0, name: value})
    assert (raised.value.exit_code, raised.value.step) == (1, 7)
    assert "learning_rate" in raised.value.hint
