from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from loradock.cli import VERBS, cli, main
from loradock.registry.errors import NotFound, NotServable
from loradock.registry.store import Store
from tests.support import warm
from tests.support.adapters import log_adapter, make_version, write_adapter

HEAVY = {"torch", "mlflow", "vllm", "transformers", "peft", "trl"}


def loradock(*words: str) -> subprocess.CompletedProcess[str]:
    """The command itself, as a shell sees it."""
    return warm.run([warm.LORADOCK, *words], kind="registry", timeout=120)


def commands() -> dict[str, click.Command]:
    return {
        name: getattr(importlib.import_module(verb.target.split(":")[0]), verb.target.split(":")[1])
        for name, verb in VERBS.items()
    }


def test_help_lists_every_verb_by_room_and_imports_nothing_heavy() -> None:
    code = "import sys; from loradock.cli import main; sys.argv[1:] = ['--help']; main()"
    trace = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in trace.stderr.splitlines()}
    assert "loradock" in imported
    assert not HEAVY & imported
    assert all(f"{verb.room}:" in trace.stdout for verb in VERBS.values())
    assert all(f"  {name} " in trace.stdout for name in VERBS)


def test_importing_every_verb_imports_nothing_heavy() -> None:
    modules = sorted({verb.target.split(":")[0] for verb in VERBS.values()})
    code = f"import sys, {', '.join(modules)}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_table_says_what_each_verb_says_of_itself() -> None:
    for name, command in commands().items():
        assert command.name == name
        assert (command.help or "").startswith(VERBS[name].help.rstrip(".")), name


def test_every_option_has_help_and_every_verb_that_gives_data_has_json() -> None:
    for name, command in commands().items():
        options = [option for option in command.params if isinstance(option, click.Option)]
        assert [option.name for option in options if not option.help] == [], name
        gives_data = name not in ("serve", "translate", "up", "completion")
        assert not gives_data or any("--json" in option.opts for option in options), name


@pytest.fixture
def run_id(store: Store, tmp_path: Path) -> str:
    return log_adapter(store, write_adapter(tmp_path / "a"))


def answer(*words: str) -> Any:
    result = CliRunner().invoke(cli, [*words, "--json"], catch_exceptions=False)
    return json.loads(result.stdout)


def test_register_promote_roll_back_and_every_reading_of_it(store: Store, tmp_path: Path, run_id: str) -> None:
    second = log_adapter(store, write_adapter(tmp_path / "b", seed=1))
    assert answer("register", run_id, "--name", "support-bot")["version"] == "support-bot/1"
    assert answer("register", second, "--name", "support-bot")["version"] == "support-bot/2"
    answer("promote", "support-bot/1")
    moved = answer("promote", "support-bot/2", "--expect", "1", "--reason", "calmer")
    assert (moved["from"], moved["to"], moved["actor"]) == ("support-bot/1", "support-bot/2", "tester")
    assert answer("list") == [{"name": "support-bot", "aliases": {"production": 2}}]
    assert [row["aliases"] for row in answer("list", "support-bot")] == [["production"], []]
    assert answer("rollback", "support-bot")["to"] == "support-bot/1"
    assert [row["op"] for row in answer("history", "support-bot")] == ["promote", "promote", "rollback"]
    assert answer("show", "support-bot")["version"] == "support-bot/1"
    assert answer("verify", "support-bot/2")["files"] == 2


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("show support-bot/1", 5, "support-bot/1"),
        ("promote support-bot", 2, "NAME/NUMBER"),
        ("promote support-bot/1", 5, "support-bot/1"),
        (f"register {'f' * 32} --name Support", 2, "not an adapter name"),
        (f"register {'f' * 32} --name support-bot", 5, "there is no run"),
        ("rollback support-bot", 5, "support-bot"),
        ("history nobody", 5, "nobody"),
        ("nonsense", 2, "nonsense"),
    ],
)
def test_what_is_wrong_is_one_line_and_one_hint_and_its_exit_code(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, code: int, said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["loradock", *words.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr()
    assert stopped.value.code == code
    assert said in printed.err
    assert len(printed.err.strip().splitlines()) <= 4
    assert printed.out == ""


@pytest.mark.parametrize(
    ("words", "raised"),
    [("--debug show a/1", NotFound), ("show a/1", SystemExit), ("up --no-serve -- --debug", SystemExit)],
)
def test_an_error_has_its_traceback_where_loradock_itself_is_to_debug(
    home: Path, monkeypatch: pytest.MonkeyPatch, words: str, raised: type[BaseException]
) -> None:
    """An argument for vLLM of the same name says nothing."""
    monkeypatch.setattr(sys, "argv", ["loradock", *words.split()])
    with pytest.raises(raised):
        main()


@pytest.mark.slow
def test_a_store_that_is_out_of_reach_is_said_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    done = loradock("list")
    assert done.returncode == 6
    assert "unreachable" in done.stderr
    assert "secret" not in done.stderr


def test_a_move_past_loradock_is_told_and_settled(store: Store, tmp_path: Path) -> None:
    for seed in range(2):
        make_version(store, tmp_path / str(seed), seed=seed)
    answer("promote", "support-bot/1")
    store.client.set_registered_model_alias("support-bot", "production", "2")
    told = CliRunner().invoke(cli, ["history", "support-bot", "--json"])
    assert "changed out of band: it is at version 2" in told.stderr
    assert len(json.loads(told.stdout)) == 1
    assert answer("history", "support-bot", "--restore", "--reason", "not yours")[-1]["op"] == "restore"
    assert answer("list") == [{"name": "support-bot", "aliases": {"production": 1}}]
    store.client.set_registered_model_alias("support-bot", "production", "2")
    adopted = CliRunner().invoke(cli, ["history", "support-bot", "--adopt", "--json"])
    assert adopted.stderr == ""
    assert json.loads(adopted.stdout)[-1]["op"] == "adopt"
    assert answer("history", "support-bot", "--at", "2000-01-01") == {}
    assert answer("history", "support-bot", "--at", "2999-01-01") == {"production": "support-bot/2"}


@pytest.mark.slow
def test_import_and_check_a_directory_and_a_version(store: Store, base_dir: Path, tmp_path: Path) -> None:
    good, bad = write_adapter(tmp_path / "good"), write_adapter(tmp_path / "bad", config={"use_dora": True})
    assert answer("import", str(good), "--name", "support-bot", "--base", str(base_dir))["version"] == "support-bot/1"
    assert answer("check", "support-bot/1", "--base", str(base_dir)) == {
        "target": "support-bot/1",
        "servable": True,
        "verdict": "servable",
        "findings": [],
    }
    for words, fault in (
        (["check", str(bad)], "DoRA"),
        (["check", "support-bot/1", "--max-lora-rank", "2"], "rank is 4"),
    ):
        result = CliRunner().invoke(cli, [*words, "--json"])
        assert isinstance(result.exception, NotServable)
        assert fault in json.loads(result.stdout)["findings"][0]["text"]


def test_what_nobody_foresaw_is_one_line_and_a_traceback_only_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def odd() -> None:
        raise KeyError("base_model")

    monkeypatch.setattr(cli, "get_command", lambda *_: odd)
    monkeypatch.setattr(sys, "argv", ["loradock", "odd"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "loradock: KeyError: 'base_model'\n  -> --debug shows where it comes from\n"
    monkeypatch.setattr(sys, "argv", ["loradock", "--debug", "odd"])
    with pytest.raises(KeyError):
        main()
