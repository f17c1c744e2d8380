from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from loradock.cli import main
from loradock.registry.artifact import CONFIG, MANIFEST, WEIGHTS
from loradock.registry.base import identify
from loradock.registry.store import Store
from tests.support.adapters import make_version
from tests.support.registry.ailing import CASES, make_bases, write

BUILD = {case.name: case.build for case in CASES}


class Shell:
    """The command as a shell sees it: what it printed, and its exit code."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._read = monkeypatch, capsys

    def __call__(self, *words: object) -> tuple[int, str, str]:
        self._patch.setattr(sys, "argv", ["loradock", "check", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        printed = self._read.readouterr()
        return code, printed.out, printed.err

    def json(self, *words: object) -> tuple[int, Any]:
        code, out, _ = self(*words, "--json")
        return code, json.loads(out)


@pytest.fixture
def shell(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capsys)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bases(tmp_path_factory.mktemp("bases"))["llama"]


def test_a_servable_adapter_exits_with_0(shell: Shell, llama: Path, tmp_path: Path) -> None:
    code, told = shell.json(write(tmp_path / "a"), "--base", llama, "--max-lora-rank", 16)
    assert code == 0
    assert told == {"target": str(tmp_path / "a"), "verdict": "servable", "servable": True, "findings": []}


def test_a_finding_is_told_with_its_remedy_and_exits_with_3(shell: Shell, llama: Path, tmp_path: Path) -> None:
    code, told = shell.json(write(tmp_path / "a", config={"use_dora": True}), "--base", llama)
    assert (code, told["verdict"], told["servable"]) == (3, "servable after convert", False)
    assert [(row["code"], row["remedy"], row["blocks"]) for row in told["findings"]] == [("dora", "convert", True)]
    code, out, err = shell(tmp_path / "a", "--base", llama)
    assert code == 3
    assert "dora" in out
    assert "servable after convert" in err
    assert len(err.strip().splitlines()) == 2


def test_a_base_of_which_only_the_configuration_is_there_is_enough(shell: Shell, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_bytes((llama / "config.json").read_bytes())
    BUILD["a wider base"](tmp_path / "a")
    code, told = shell.json(tmp_path / "a", "--base", tmp_path / "base")
    assert code == 3
    assert [row["code"] for row in told["findings"]] == ["wrong-base"]


def test_a_version_is_checked_for_the_very_weights_that_it_was_trained_on(
    shell: Shell, store: Store, llama: Path, tmp_path: Path, base_dir: Path
) -> None:
    make_version(store, tmp_path / "a", base=identify(base_dir, base_id="smol"))
    assert shell.json("support-bot/1", "--base", base_dir)[0] == 0
    code, told = shell.json("support-bot/1")
    assert (code, told["verdict"], told["servable"]) == (3, "unknown", None)
    assert [row["code"] for row in told["findings"]] == ["base-not-given"]
    assert "--base BASE" in shell("support-bot/1")[2]
    make_version(store, tmp_path / "b", seed=1, base=identify(llama, base_id="llama"))
    code, told = shell.json("support-bot/2", "--base", base_dir)
    assert code == 3
    assert [row["code"] for row in told["findings"]] == ["other-base"]
    code, told = shell.json("support-bot/1", "--max-lora-rank", 2)
    assert (code, told["findings"][0]["code"]) == (3, "rank-above-limit")


def test_fix_writes_a_mended_copy_and_shows_that_nothing_moved(shell: Shell, llama: Path, tmp_path: Path) -> None:
    BUILD["all of these"](tmp_path / "a")
    code, told = shell.json(tmp_path / "a", "--base", llama, "--fix", tmp_path / "new" / "b")
    assert (code, told["mendings"], told["verdict"]) == (0, ["names"], "servable")
    assert told["largest_difference"] == 0
    assert len(told["differences"]) == 6
    assert {path.name for path in (tmp_path / "new" / "b").iterdir()} == {CONFIG, WEIGHTS, MANIFEST}
    assert shell.json(tmp_path / "new" / "b", "--base", llama) == (
        0,
        {"target": str(tmp_path / "new" / "b"), "verdict": "servable", "servable": True, "findings": []},
    )
    BUILD["PiSSA"](tmp_path / "pissa")
    code, out, err = shell(tmp_path / "pissa", "--base", llama, "--fix", tmp_path / "plain")
    assert (code, err) == (0, "")
    assert "largest_difference" in out


def test_fix_of_what_is_whole_writes_nothing_and_says_so(shell: Shell, llama: Path, tmp_path: Path) -> None:
    code, out, err = shell(write(tmp_path / "a"), "--base", llama, "--fix", tmp_path / "b")
    assert code == 0
    assert "servable" in out
    assert "nothing to mend" in err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["NaN", "DoRA", "two adapters in one file", "LoftQ", "cut off in the data"])
def test_fix_of_what_cannot_be_mended_exits_with_3_and_writes_nothing(
    shell: Shell, llama: Path, tmp_path: Path, name: str
) -> None:
    BUILD[name](tmp_path / "a")
    code, out, err = shell(tmp_path / "a", "--base", llama, "--fix", tmp_path / "b")
    assert (code, out) == (3, "")
    assert "cannot be served" in err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == ["a"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("./nothing", 5, "no directory"),
        ("{tmp}/nothing", 5, "no directory"),
        ("Not/a/ref", 2, "Not/a/ref"),
        ("support-bot/7", 5, "support-bot"),
        ("{tmp}", 2, "no adapter"),
        ("{tmp}/a --base {tmp}/nobase", 5, "no base model"),
        ("{tmp}/a --base {tmp}", 2, "config.json"),
        ("{tmp}/a --max-lora-rank 0", 2, "max-lora-rank"),
        ("{tmp}/a --fix {tmp}/a", 2, "there already"),
        ("{tmp}/pissa --fix {tmp}/b", 2, "--base"),
    ],
)
def test_what_is_wrong_is_one_clear_line(shell: Shell, tmp_path: Path, words: str, code: int, said: str) -> None:
    BUILD["biases that are told of only"](tmp_path / "a")
    BUILD["PiSSA"](tmp_path / "pissa")
    found, out, err = shell(*words.format(tmp=tmp_path).split())
    assert (found, out) == (code, ""), err
    assert said in err
    assert len(err.strip().splitlines()) <= 5
    assert not (tmp_path / "b").exists()
