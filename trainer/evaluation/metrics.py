"""What can be measured of an answer: by name, or by a function in a file of the user's."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from loradock.registry import functions
from loradock.registry.artifact import sha256_of
from loradock.registry.errors import BadInput, first_line
from loradock.registry.evidence import PERPLEXITY

Score = Callable[[str, str, str], float]
"""Of a prediction, the reference, and the prompt."""

_FUNCTION = re.compile(r"(?P<file>.+\.py):(?P<function>[A-Za-z_]\w*)(?::(?P<better>lower|higher))?")
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Metric:
    """One way to measure; `loss` has no function, for it is read off the model and not off an answer."""

    name: str
    score: Score | None = None
    better: Literal["lower", "higher"] = "higher"
    digest: str = ""
    """SHA-256 of the user's file; empty for a metric of ours."""

    def of(self, prediction: str, reference: str, prompt: str, *, row: int) -> float:
        """The score of one answer; raises BadInput, naming the row, when the user's function gives none."""
        if self.score is None:
            raise TypeError(f"{self.name} is not measured on answers")
        try:
            value = float(self.score(prediction, reference, prompt))
        except Exception as error:  # a user's function raises what it likes
            said = f"{type(error).__name__}: {first_line(error)}"
            raise BadInput(f"the metric {self.name} fails on row {row}, {reference[:40]!r}: {said}") from error
        if not math.isfinite(value):
            raise BadInput(f"the metric {self.name} gives {value} for row {row}, which is no finite number")
        return value


def parse(given: Sequence[str]) -> tuple[Metric, ...]:
    """Metrics as the command line names them, each once; raises BadInput, or NotFound for a file that is not there."""
    found: dict[str, Metric] = {}
    for text in given:
        metric = _one(text)
        known = found.setdefault(metric.name, metric)
        if known is not metric and known.score is not metric.score:
            raise BadInput(f"two metrics are called {metric.name}", hint="give the functions different names")
    return tuple(found.values())


def _one(text: str) -> Metric:
    if text in _NAMED:
        return _NAMED[text]
    match = _FUNCTION.fullmatch(text)
    if not match:
        raise BadInput(
            f"there is no metric {text!r}",
            hint=f"it is one of {', '.join(_NAMED)}, or FILE.py:FUNCTION, with :lower where lower is better",
        )
    name = match["function"]
    if name in _NAMED:
        raise BadInput(f"{text} has the name of a metric of loradock's", hint="give the function another name")
    better: Literal["lower", "higher"] = "lower" if match["better"] == "lower" else "higher"
    path = Path(match["file"]).expanduser()
    score = functions.load(path, name, hint="a metric of yours is written FILE.py:FUNCTION")
    return Metric(name, score, better, sha256_of(path))


def exact_match(prediction: str, reference: str, _prompt: str = "") -> float:
    """1 where the two are the same but for white space around them, else 0."""
    return float(prediction.strip() == reference.strip())


def rouge(prediction: str, reference: str, _prompt: str = "") -> float:
    """ROUGE-L: the F1 of the longest common subsequence of words, case and punctuation left out.

    Source: Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004, https://aclanthology.org/W04-1013.
    A word is a run of letters and digits of any script.
    """
    ours, theirs = (_WORD.findall(text.lower()) for text in (prediction, reference))
    total = len(ours) + len(theirs)
    return 2 * _common(ours, theirs) / total if total else 0.0


def _common(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """The length of the longest common subsequence, a row of the table at a time as the bits of a number.

    Source: Hyyrö, Bit-parallel LCS-length computation revisited, 2004.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(ours):
        places[word] = places.get(word, 0) | 1 << place
    everywhere = (1 << len(ours)) - 1
    row = everywhere
    for word in theirs:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & everywhere
    return len(ours) - row.bit_count()


_LOSS: Final = Metric("loss", better="lower")
_NAMED: Final = {
    "loss": _LOSS,
    PERPLEXITY: _LOSS,
    "exact_match": Metric("exact_match", exact_match),
    "rouge": Metric("rouge", rouge),
}
"""Perplexity comes of the loss, and always beside it."""
