"""What stands beside the Trainer's loop: it shows progress, keeps the curves, and stops on a loss that is no number."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from registry.errors import LoradockError
from trainer.curves import Curves

_KEPT: Final = ("loss", "eval_loss", "learning_rate", "grad_norm", "num_tokens", "mean_token_accuracy", "epoch")


class Diverged(LoradockError):
    """The loss stopped being a number at `step`."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(
            f"{what} is no finite number at step {step}: the training diverged",
            hint="lower training.learning_rate, or raise training.warmup_steps",
        )
        self.step = step


class Watch(TrainerCallback):  # type: ignore[misc]  # transformers' lazy module has no types
    """Hands every measurement on as (step, values), once, in order."""

    def __init__(self, curves: Curves, measured: Callable[[int, Mapping[str, float]], None]) -> None:
        self.curves = curves
        self.measured = measured
        self.seconds = 0.0
        """Time spent in training steps, evaluation left out."""
        self.tokens = 0
        """Tokens that were trained on, padding left out."""
        self._began = 0.0
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
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=None, words="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The number of steps is known now."""
        self._bar.update(self._task, total=state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock of one step."""
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock of one step."""
        self.seconds += time.perf_counter() - self._began
        self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Take in what the Trainer measured; raises Diverged."""
        values = {name: float(value) for name, value in (logs or {}).items() if name in _KEPT}
        for name in ("loss", "eval_loss", "grad_norm"):
            if not math.isfinite(values.get(name, 0.0)):
                raise Diverged(name, state.global_step)
        if "loss" not in values and "eval_loss" not in values:
            return
        if "loss" in values:
            self.tokens = int(values.get("num_tokens", 0))
            tokens, seconds = self._marked
            values["tokens_per_second"] = (self.tokens - tokens) / max(self.seconds - seconds, 1e-9)
            self._marked = (self.tokens, self.seconds)
            self._bar.update(self._task, words=f"loss {values['loss']:.3f}  {values['tokens_per_second']:.0f} tokens/s")
        else:
            values = {"eval_loss": values["eval_loss"]}
        self.curves.add(state.global_step, values)
        self.measured(state.global_step, values)
