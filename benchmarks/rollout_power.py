"""How many of a canary's answers a rollout takes to show something, by simulation; the table of docs/how-to/canary.md.

python benchmarks/rollout_power.py [--runs 100]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final, Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loradock.serving.rollout.blocks import Comparison
from loradock.serving.rollout.measures import Limits
from loradock.serving.signals import Ended

ALPHA: Final = 0.01
SIGNALS: Final = 5  # that share the chance of a false alarm
MOST: Final = 20_000  # answers of the canary, after which a run ends undecided
LOOK: Final = 10  # answers of the canary between two looks

Case = tuple[float, float, float, float]
"""Production's rate, the canary's, the margin, the canary's share."""

CASES: Final[tuple[Case, ...]] = (
    (0.00, 1.00, 0.05, 0.05),
    (0.05, 0.30, 0.05, 0.05),
    (0.10, 0.20, 0.05, 0.05),
    (0.05, 0.10, 0.02, 0.05),
    (0.05, 0.10, 0.02, 0.50),
    (0.00, 0.00, 0.02, 0.50),
    (0.01, 0.01, 0.02, 0.50),
    (0.05, 0.05, 0.05, 0.50),
    (0.30, 0.30, 0.05, 0.50),
)


def ended(role: Literal["canary", "production"], bad: bool) -> Ended:
    """One call, as a replica tells of it."""
    number = 2 if role == "canary" else 1
    return Ended(0, "bot", number, role, 0.0, "error" if bad else "ok", "stop", 0.1, 0.01, 1.0, 5, 5)


def run(case: Case, random: np.random.Generator) -> tuple[str, int]:
    """What was shown, and after how many of the canary's answers."""
    production, canary, margin, share = case
    worse = canary - production > margin
    # An alarm has its part of the chance of a false one; what is shown to be within has all of it.
    compared = Comparison({"error": margin}, Limits(9, 9, 9), ALPHA / SIGNALS if worse else ALPHA)
    while compared.answers < MOST:
        ours = random.random(int(LOOK / share)) < share
        bad = random.random(len(ours)) < np.where(ours, canary, production)
        rows = [ended("canary" if mine else "production", is_bad) for mine, is_bad in zip(ours, bad, strict=True)]
        compared.add("one", rows, canary=2, production=1)
        (finding,) = compared.findings()
        if finding.alarmed or finding.shown:
            return "it does worse" if finding.alarmed else "it is within", compared.answers
    return "undecided", compared.answers


def main() -> None:
    """A row for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    runs = parser.parse_args().runs
    print("| Production | Canary | Margin | Share | What is shown | Answers: median | 90% of runs |")
    print("|---|---|---|---|---|---|---|")
    for place, case in enumerate(CASES):
        random = np.random.default_rng(place)
        found = [run(case, random) for _ in range(runs)]
        kinds = sorted({kind for kind, _ in found}, key=lambda kind: -sum(kind == other for other, _ in found))
        middle, most = np.percentile([answers for _, answers in found], [50, 90])
        shown = ", ".join(f"{kind} {sum(kind == other for other, _ in found)}" for kind in kinds)
        print(f"| {' | '.join(f'{value:.0%}' for value in case)} | {shown} | {middle:.0f} | {most:.0f} |", flush=True)


if __name__ == "__main__":
    main()
