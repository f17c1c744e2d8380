"""What becomes of another trainer's key: a table holds one rule for each, so that all of them are seen on a page."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final


class Kind(StrEnum):
    """What a rule does with its key."""

    TO = "one of our keys holds the same value"
    WORKED = "its value is worked out together with others"
    IDLE = "it does not change what is trained"
    REFUSED = "there is no training like that here"


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of one key."""

    kind: Kind
    said: str
    """Our key with its section (TO, WORKED), or the reason (IDLE, REFUSED)."""
    off: tuple[Any, ...] = ()
    """Values that ask for nothing, besides null, false and what is empty."""
    words: Mapping[Any, Any] = field(default_factory=dict)
    """Their values, where ours have other names (TO)."""

    def is_off(self, value: Any) -> bool:
        """Whether a value asks for nothing; a zero does not, unless the rule says so."""
        return value is None or value is False or value in ("", [], {}) or any(_same(value, off) for off in self.off)


def to(target: str, **words: Any) -> Rule:
    """Our key `target` holds the value, under our name for it where `words` has one."""
    return Rule(Kind.TO, target, words=words)


def worked(target: str) -> Rule:
    """A function works out `target` from this key and others."""
    return Rule(Kind.WORKED, target)


def idle(why: str, *off: Any) -> Rule:
    """The key does not change what is trained, for the reason given; it is named in a warning unless it is off."""
    return Rule(Kind.IDLE, why, off)


def refused(why: str, *off: Any) -> Rule:
    """There is no such training here, for the reason given: an error, unless it is off."""
    return Rule(Kind.REFUSED, why, off)


def each(names: str, rule: Rule) -> dict[str, Rule]:
    """One rule for several keys, written with spaces between them."""
    return dict.fromkeys(names.split(), rule)


def unknown(key: str, table: Mapping[str, Rule], dialect: str = "") -> str:
    """What to say of a key that the table does not hold."""
    near = difflib.get_close_matches(key, table, n=1, cutoff=0.6)
    of = f" of {dialect}" if dialect else ""
    return f"is no key{of} that is known" + (f"; did you mean {near[0]}?" if near else "")


NUMBERS: Final = "it changes how fast the same numbers come about"
MLFLOW: Final = "runs are logged to MLflow"
KEPT: Final = "a run keeps its adapter in MLflow, and checkpoints only until it ends"
DEVICES: Final = "how work is spread over devices is told by `loradock train --processes N --accelerate-config FILE`"
REMOTE_CODE: Final = "code from the Hub is never run: the base must be an architecture of transformers"
CUT: Final = "rows that are too long are left out and counted here, not cut"
PREFERENCE: Final = "preference, reward and reinforcement learning are not done here"
VISION: Final = "text alone is trained on"
VOCABULARY: Final = "the vocabulary stays the base's"
TURNS: Final = (
    "each of the assistant's turns is an example of its own here, so that rows of several turns make more steps"
)
WHOLE: Final = "rows are read whole before training begins"
EVALUATION: Final = "evaluation here is the held-out loss, with a table of answers before and after"
OPTIMIZER: Final = "there is no such optimiser here: training.optim lists what there is"
RATES: Final = "one learning rate holds for all weights that are trained"
READ: Final = "rows are read anew for each run"
RESUME: Final = "`loradock train --resume` goes on from a run's last checkpoint"
TEMPLATE: Final = "rows are written by the base's own chat template, as it is"
TOKENIZER: Final = "the tokenizer is the base's, as its own configuration says"
SHUFFLED: Final = "rows are shuffled anew for each epoch, and nothing else orders them"


def _same(value: Any, off: Any) -> bool:
    return (type(value) is type(off) and bool(value == off)) or (_number(value) and _number(off) and value == off)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
