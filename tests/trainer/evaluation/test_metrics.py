"""Metrics are named as they are meant, and give what their papers say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loradock.registry.errors import BadInput, LoradockError
from loradock.trainer.evaluation import metrics
from loradock.trainer.evaluation.metrics import exact_match, rouge


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        # what rouge-score 0.1.2 gives
        ("the cat was found under the bed", "the cat was under the bed", 0.923076923076923),
        ("police kill the gunman", "police killed the gunman", 0.75),
        ("the gunman police killed", "police killed the gunman", 0.5),
        ("a b c d e f g", "a c e g z", 0.6666666666666666),
        ("Arr, 3 be 3!", "arr 3 BE 3", 1.0),
        ("", "a b", 0.0),
        ("x", "y", 0.0),
        # where it would take apart or leave out what is not ASCII
        ("Das Mädchen größer", "das mädchen ist größer", 6 / 7),
        ("привет мир", "привет мир", 1.0),
        ("", "", 0.0),
    ],
)
def test_rouge(prediction: str, reference: str, score: float) -> None:
    assert rouge(prediction, reference) == pytest.approx(score)


def test_the_longest_common_subsequence_is_that_of_the_textbook() -> None:
    random = np.random.default_rng(3)
    for _ in range(200):
        ours, theirs = (list(random.choice(list("abcd"), random.integers(12))) for _ in range(2))
        table = [[0] * (len(theirs) + 1) for _ in range(len(ours) + 1)]
        for i, one in enumerate(ours):
            for j, other in enumerate(theirs):
                table[i + 1][j + 1] = table[i][j] + 1 if one == other else max(table[i][j + 1], table[i + 1][j])
        assert metrics._common(ours, theirs) == table[-1][-1]


def test_exact_match() -> None:
    assert exact_match(" Yes.\n", "Yes.") == 1
    assert exact_match("yes.", "Yes.") == 0


def test_perplexity_is_told_with_the_loss() -> None:
    found = metrics.parse(["perplexity", "loss", "rouge"])
    assert [(metric.name, metric.better) for metric in found] == [("loss", "lower"), ("rouge", "higher")]


def test_a_function_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def longer(prediction, reference, prompt):\n    return len(prediction) - len(reference)\n")
    (metric,) = metrics.parse([f"{path}:longer:lower"])
    assert (metric.name, metric.better, len(metric.digest)) == ("longer", "lower", 64)
    assert metric.of("abc", "a", "", row=1) == 2
    assert metrics.parse([f"{path}:longer"])[0].better == "higher"


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ("bleu", 2, "there is no metric 'bleu'"),
        ("no/such.py:score", 5, "there is no file no/such.py"),
        ("{mine}:other", 2, "has no function other"),
        ("{mine}:rouge", 2, "has the name of a metric of loradock's"),
        ("{mine}:score:upper", 2, "there is no metric"),
        ("{broken}:score", 2, "cannot be loaded: ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_a_metric_that_cannot_be_meant(tmp_path: Path, given: str, code: int, said: str) -> None:
    mine, broken = tmp_path / "mine.py", tmp_path / "broken.py"
    mine.write_text("score = rouge = len\n")
    broken.write_text("import nowhere\n")
    with pytest.raises(LoradockError, match=said) as raised:
        metrics.parse([given.format(mine=mine, broken=broken)])
    assert raised.value.exit_code == code


def test_two_functions_of_one_name(tmp_path: Path) -> None:
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text("def score(*_): return 1\n")
    with pytest.raises(BadInput, match="two metrics are called score"):
        metrics.parse([f"{tmp_path}/one.py:score", f"{tmp_path}/two.py:score"])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("1 / 0", "the metric score fails on row 7, 'a reference': ZeroDivisionError: division by zero"),
        ("None", "the metric score fails on row 7, 'a reference': TypeError"),
        ("float('nan')", "the metric score gives nan for row 7"),
    ],
)
def test_a_function_that_fails_is_told_in_one_line(tmp_path: Path, body: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(f"def score(prediction, reference, prompt):\n    return {body}\n")
    (metric,) = metrics.parse([f"{tmp_path}/mine.py:score"])
    with pytest.raises(BadInput, match=said) as raised:
        metric.of("said", "a reference", "asked", row=7)
    assert "\n" not in str(raised.value)
