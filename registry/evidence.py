"""What an evaluation found of one version, row by row, and what can be concluded from it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from loradock.registry.records import Record, TextSettings

Subject = Literal["candidate", "incumbent", "base"]
"""Who is measured: the version, the one under the alias, and the base alone."""
Number = Annotated[float, Field(allow_inf_nan=False)]

PERPLEXITY: Final = "perplexity"
"""It has no value for a row: it is the exponential of the mean loss."""

_DRAWN: Final = 4_000_000  # rows drawn at a time, 32 MB


class Scores(Record):
    """One metric's value for each row."""

    better: Literal["lower", "higher"]
    weighted: bool
    """Whether a row counts by its completion tokens, as loss does, or as one."""
    candidate: tuple[Number, ...]
    incumbent: tuple[Number, ...] = ()
    """Empty where there was none."""
    base: tuple[Number, ...] = ()

    def of(self, subject: Subject) -> tuple[float, ...]:
        """One subject's values."""
        found: tuple[float, ...] = getattr(self, subject)
        return found


class Evidence(Record):
    """One complete evaluation of one version's bytes on one set of rows."""

    run_id: str
    name: str
    candidate: str
    """The version's digest."""
    incumbent: str
    """The digest of the version it was compared with; empty where there was none."""
    base: str
    """The base's weights digest."""
    data_digest: str
    through: Literal["transformers", "endpoint"] = "transformers"
    at: datetime
    metrics: Mapping[str, Scores]
    weights: Annotated[tuple[Number, ...], Field(min_length=1)]
    """Completion tokens of each row."""
    rows: tuple[str, ...] = ()
    """SHA-256 of each row's canonical text."""
    text: TextSettings = TextSettings()
    """Those of the base that was measured on; not known of evaluations by an older loradock."""

    @model_validator(mode="after")
    def _one_value_a_row(self) -> Self:
        for metric, scores in self.metrics.items():
            for values in (scores.candidate, scores.incumbent or self.weights, scores.base or self.weights):
                if len(values) != len(self.weights):
                    raise ValueError(f"{metric} has {len(values)} values for {len(self.weights)} rows")
        if self.rows and len(self.rows) != len(self.weights):
            raise ValueError(f"there are {len(self.rows)} rows with {len(self.weights)} weights")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical record, 64 hex digits."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def weights_of(self, metric: str) -> tuple[float, ...] | None:
        """By what a metric's rows count; None where all count alike."""
        return self.weights if self.metrics[metric].weighted else None

    def value(self, metric: str, subject: Subject) -> float | None:
        """A metric's mean, or perplexity from the loss; None where the subject was not measured by it."""
        if metric == PERPLEXITY:
            loss = self.value("loss", subject)
            return None if loss is None else math.exp(loss)
        values = self.metrics[metric].of(subject) if metric in self.metrics else ()
        return mean(values, self.weights_of(metric)) if values else None

    def difference(self, metric: str, subject: Subject) -> Interval | None:
        """How far the candidate's mean is above another's; None where that one was not measured."""
        scores = self.metrics[metric]
        theirs = scores.of(subject)
        return paired_bootstrap(scores.candidate, theirs, self.weights_of(metric)) if theirs else None


class Interval(Record):
    """A mean, and the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


def mean(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """The mean of rows, each counted by its weight where weights are given."""
    import numpy as np

    return float(np.average(values, weights=weights))


def paired_bootstrap(
    ours: Sequence[float],
    theirs: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The difference of two means over the same rows, ours less theirs, by the percentile bootstrap over rows.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; paired as in Koehn, 2004,
    https://aclanthology.org/W04-3250. Raises ValueError where the two have other numbers of rows, or none.
    """
    import numpy as np

    if not ours or len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} rows cannot be paired with {len(theirs)}")
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    weight = np.ones_like(difference) if weights is None else np.asarray(weights, dtype=np.float64)
    random, rows = np.random.default_rng(seed), len(difference)
    at_once = max(1, _DRAWN // rows)
    means = []
    for start in range(0, resamples, at_once):
        drawn = random.integers(rows, size=(min(at_once, resamples - start), rows))
        means.append((difference * weight)[drawn].sum(axis=1) / weight[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean=mean(list(difference), list(weight)), low=float(low), high=float(high))
