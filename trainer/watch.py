"""What stands beside the Trainer's loop: it shows progress, keeps the curves, and stops on a loss that is lost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from loradock.registry.errors import LoradockError
from loradock.trainer.curves import Curves

_KEPT: Final = ("loss", "eval_loss", "learning_rate", "grad_norm", "mean_token_accuracy", "epoch")
_RISE: Final = 3.0  # nats a token above the best report: twenty times the perplexity
_IN_A_ROW: Final = 3


class Diverged(LoradockError):
    """The training stopped making sense at `step`."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(
            f"{what} at step {step}: the training diverged",
            hint="lower training.learning_rate, or raise training.warmup_steps",
        )
        self.step = step


class Watch(TrainerCallback):  # type: ignore[misc]  # transformers' lazy module has no types
    """Hands every measurement on as (step, values), once, in order; `curves` may hold those of an earlier start."""

    def __init__(
        self,
        curves: Curves,
        measured: Callable[[int, Mapping[str, float]], None],
        *,
        shown: bool = True,
        evaluated: bool = True,
    ) -> None:
        self.curves = curves
        self._measured = measured
        self._evaluated = evaluated
        self._seconds = 0.0  # in training steps, evaluation left out
        self._began = 0.0
        self._tokens_before = 0  # of an earlier start
        self.tokens = 0
        self._marked = (0, 0.0)  # tokens and seconds at the last report
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=(console := Console(stderr=True)),
            transient=True,
            disable=not (shown and console.is_terminal),
        )
        self._task = self._bar.add_task("training", total=None, words="")

    @property
    def tokens_per_second(self) -> float:
        """Tokens trained on, padding left out, over the time in training steps."""
        return (self.tokens - self._tokens_before) / max(self._seconds, 1e-9)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The number of steps is known now."""
        self._bar.update(self._task, total=state.max_steps, completed=state.global_step)
        self._tokens_before = self.tokens = int(state.num_input_tokens_seen)
        self._marked = (self.tokens, 0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock of one step."""
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock of one step; the last one is reported, evaluated and saved, whatever the steps between are."""
        self._seconds += time.perf_counter() - self._began
        self.tokens = int(state.num_input_tokens_seen)
        self._bar.update(self._task, completed=state.global_step)
        if state.global_step >= state.max_steps:
            control.should_log = True
            control.should_evaluate = self._evaluated
            control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Take in what the Trainer measured; raises Diverged."""
        values = {name: float(value) for name, value in (logs or {}).items() if name in _KEPT}
        for name in ("loss", "eval_loss", "grad_norm"):
            if not math.isfinite(values.get(name, 0.0)):
                raise Diverged(f"{name} is no finite number", state.global_step)
        if "loss" not in values and "eval_loss" not in values:
            return
        if "loss" in values:
            tokens, seconds = self._marked
            values["tokens_per_second"] = (self.tokens - tokens) / max(self._seconds - seconds, 1e-9)
            self._marked = (self.tokens, self._seconds)
            self._bar.update(self._task, words=f"loss {values['loss']:.3f}  {values['tokens_per_second']:.0f} tokens/s")
        else:
            values = {"eval_loss": values["eval_loss"]}
        self.curves.add(state.global_step, values)
        self._measured(state.global_step, values)
        self._stop_when_lost(state.global_step)

    def _stop_when_lost(self, step: int) -> None:
        losses = [value for _, value in self.curves.points.get("loss", [])]
        if len(losses) > _IN_A_ROW and min(losses[-_IN_A_ROW:]) > min(losses) + _RISE:
            raise Diverged(f"loss rose from {min(losses):.2f} to {losses[-1]:.2f}", step)
