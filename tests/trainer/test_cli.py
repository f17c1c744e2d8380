"""`loradock train` refuses what cannot be meant before it loads or writes anything."""

from __future__ import annotations

import subprocess
from pathlib import Path

import click
import pytest

from loradock.cli.train import train
from tests.support import warm

RECIPE = "name: tiny\nbase: no/such\ndata: {path: rows.jsonl, heldout: 0.5}\n"
ROW = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'


def loradock(*arguments: str) -> subprocess.CompletedProcess[str]:
    return warm.run([warm.LORADOCK, *arguments], kind="registry")


def test_every_option_has_help() -> None:
    assert all(option.help for option in train.params if isinstance(option, click.Option))
    assert train.help


@pytest.mark.parametrize(
    ("text", "rows", "code", "said"),
    [
        (None, ROW, 5, "there is no recipe"),
        (RECIPE + "sed: 1\n", ROW, 2, "recipe.yaml:4: sed: is no setting here; did you mean seed?"),
        (RECIPE, "{}\n", 2, "rows.jsonl:1: it has no columns"),
        (RECIPE, ROW, 2, "leaves no row to"),
    ],
)
def test_what_cannot_be_meant_is_told_and_leaves_nothing(
    home: Path, tmp_path: Path, text: str | None, rows: str, code: int, said: str
) -> None:
    before = sorted(home.rglob("*"))
    (tmp_path / "rows.jsonl").write_text(rows)
    if text is not None:
        (tmp_path / "recipe.yaml").write_text(text)
    done = loradock("train", str(tmp_path / "recipe.yaml"), "--json")
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(home.rglob("*")) == before
