"""When another recipe evaluates, keeps checkpoints and stops early: in steps, which is how ours says it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from loradock.trainer.dialects.draft import Draft
from loradock.trainer.dialects.length import Length
from loradock.trainer.dialects.parts import Rows, is_number, number, total
from loradock.trainer.dialects.rules import KEPT
from loradock.trainer.dialects.source import Location, Source

UNCOUNTED: Final = (
    "how many steps that is, is known only with the data: the held-out loss is measured before and after, "
    "and training.eval_steps sets more"
)


def length(draft: Draft, found: Sequence[Rows], batch: int, epochs: Any) -> Length:
    """How long the training is; a batch of `batch` rows unless the draft has its own."""
    known = bool(found) and not draft.get("training.packing")
    per_device = draft.get("training.per_device_train_batch_size") or batch
    accumulated = draft.get("training.gradient_accumulation_steps") or 1
    steps, share = draft.get("training.max_steps"), draft.get("data.heldout")
    return Length(
        rows=total(found) if known else None,
        heldout=share if is_number(share) else 0,
        batch=max(1, per_device * accumulated) if is_number(per_device) and is_number(accumulated) else batch,
        epochs=epochs if is_number(epochs) and epochs > 0 else 1,
        max_steps=steps if isinstance(steps, int) and steps > 0 else None,
    )


def evaluations(source: Source, draft: Draft, whole: Length, strategies: Sequence[str], per_epoch: str = "") -> None:
    """Steps between two evaluations; without `per_epoch`, eval_steps counts only where a strategy says `steps`."""
    times = number(source, per_epoch) if per_epoch else None
    steps = number(source, "eval_steps")
    at = next((key for key in strategies if source.get(key) is not None), strategies[0])
    strategy = source.get(at)
    asked = [key for key in (per_epoch, "eval_steps", at) if key and source.peek(key) not in (None, False, 0, "no")]
    if strategy not in (None, False, "no", "steps", "epoch"):
        source.refuse((at,), "should be no, steps or epoch")
    elif not draft.get("data.heldout"):
        for key in asked:
            source.note((key,), "nothing is held out, so nothing is measured")
    elif times:
        _every(source, draft, whole.share(1 / (times * whole.epochs)), whole, (per_epoch,))
    elif strategy == "epoch":
        _every(source, draft, whole.epoch, whole, (at,))
    elif strategy == "steps" or (steps and per_epoch):
        _steps(source, draft, steps, whole, at)
    else:
        for key in (at, "eval_steps"):
            if source.peek(key) is not None:
                source.note((key,), "the held-out loss is measured before and after in any case, and not between")


def _steps(source: Source, draft: Draft, steps: float | None, whole: Length, strategy: str) -> None:
    if steps is None:
        logging = draft.get("training.logging_steps") or 500
        said = "as often as logging_steps, which transformers falls back to"
        draft.set("training.eval_steps", logging, (strategy,), said)
    elif steps < 1:
        _every(source, draft, whole.share(steps), whole, ("eval_steps",))
    else:
        draft.set("training.eval_steps", steps, ("eval_steps",))


def _every(source: Source, draft: Draft, steps: int | None, whole: Length, location: Location) -> None:
    if steps is None:
        source.note(location, UNCOUNTED)
        return
    counted = f", {whole.rows} rows" if whole.rows else ""
    draft.set("training.eval_steps", steps, location, f"worked out: about {whole.steps} steps in all{counted}")


def checkpoints(source: Source, draft: Draft) -> None:
    """Steps between two checkpoints: a multiple of those between evaluations, so that the best of these is kept."""
    given, every = source.get("save_steps"), draft.get("training.eval_steps")
    if is_number(given) and given < 1:
        if given:
            source.note(("save_steps",), KEPT)
    elif isinstance(given, int) and isinstance(every, int) and every > 0 and given % every:
        steps = math.ceil(given / every) * every
        said = f"worked out: the multiple of eval_steps that follows {given}"
        draft.set("training.save_steps", steps, ("save_steps",), said)
    elif given is not None:
        draft.set("training.save_steps", given, ("save_steps",))


def patience(source: Source, draft: Draft, key: str) -> None:
    """Early stopping, which needs evaluations to watch."""
    given = source.get(key)
    if not given:
        return
    if "training.eval_steps" in draft:
        draft.set("training.early_stopping_patience", given, (key,))
    else:
        source.refuse((key,), "needs training.eval_steps, and how many steps there are is known only with the data")
