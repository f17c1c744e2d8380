"""`loradock settings`, and what a setting that cannot be meant does to every verb."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from loradock.cli import settings as verb
from loradock.registry.errors import BadInput
from loradock.registry.settings import FromEnvironment, Settings
from loradock.registry.store import connection
from tests.support import warm


def loradock(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return warm.run([warm.LORADOCK, *words], kind="registry", env=os.environ | environment, timeout=120)


def rows(monkeypatch: pytest.MonkeyPatch, **environment: str) -> dict[str, dict[str, Any]]:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(verb.settings, ["--json"], catch_exceptions=False)
    return {row["variable"]: row for row in json.loads(done.stdout)}


def test_every_setting_has_a_meaning_and_is_listed_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows(monkeypatch)
    names = [name for target in verb.OURS for name in verb.load(target).variables()]
    names += [variable.variable for variable in verb.FOREIGN]
    assert list(found) == names
    assert len(set(names)) == len(names)
    assert all(row["meaning"].endswith(".") for row in found.values())


def test_it_says_what_holds_and_where_that_comes_from(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows(monkeypatch, LORADOCK_KEEP="3", MLFLOW_EXPERIMENT_NAME="")
    assert (found["LORADOCK_HOME"]["value"], found["LORADOCK_HOME"]["source"]) == (str(home), "environment")
    assert (found["LORADOCK_KEEP"]["value"], found["LORADOCK_KEEP"]["default"]) == ("3", "10")
    assert (found["MLFLOW_EXPERIMENT_NAME"]["value"], found["MLFLOW_EXPERIMENT_NAME"]["source"]) == (
        "loradock",
        "default",
    )
    assert found["MLFLOW_TRACKING_URI"]["value"] == Settings().store_uri


def test_no_secret_is_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = {variable.variable for variable in verb.FOREIGN if variable.secret}
    secret |= {
        name for target in verb.OURS for name, field in verb.load(target).variables().items() if verb.is_secret(field)
    }
    assert {"HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "VLLM_API_KEY"} <= secret
    told = dict.fromkeys(secret, "hush-hush") | {"MLFLOW_TRACKING_URI": "http://ann:hush-hush@127.0.0.1:9"}
    found = rows(monkeypatch, **told)
    assert "hush" not in json.dumps(found)
    assert all(found[name]["value"] == "***" for name in secret)
    for words in (("settings",), ("settings", "--json")):
        done = loradock(*words, LORADOCK_KEEP="x", **told)
        assert "hush" not in done.stdout + done.stderr


def test_what_cannot_be_meant_is_one_line_that_names_the_variable(home: Path) -> None:
    for words in (("list",), ("settings", "--json"), ("show", "bot/1")):
        done = loradock(*words, LORADOCK_KEEP="x")
        assert done.returncode == 2, words
        assert len(done.stderr.splitlines()) == 2
        assert "LORADOCK_KEEP: Input should be a valid integer" in done.stderr
    assert "LORADOCK_KEEP" in loradock("settings", LORADOCK_KEEP="x").stdout
    done = loradock("settings", LORADOCK_SERVE_POLL_SECONDS="0")
    assert (done.returncode, "LORADOCK_SERVE_POLL_SECONDS" in done.stderr) == (2, True)


class Several(FromEnvironment):
    model_config = SettingsConfigDict(env_prefix="LORADOCK_TEST_")

    numbers: tuple[int, ...] = ()
    key: SecretStr = SecretStr("")
    port: int = 1
    """In a line
    and another."""


def test_every_fault_is_told_and_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORADOCK_TEST_PORT", "a-secret-in-the-wrong-place")
    monkeypatch.setenv("LORADOCK_TEST_NUMBERS", '["a-secret"]')
    with pytest.raises(BadInput) as error:
        Several()
    assert "LORADOCK_TEST_PORT: " in str(error.value)
    assert "LORADOCK_TEST_NUMBERS: " in str(error.value)
    assert "a-secret" not in str(error.value)
    monkeypatch.setenv("LORADOCK_TEST_NUMBERS", "no JSON")
    with pytest.raises(BadInput, match="numbers"):
        Several()
    meaning = [row.meaning for row in verb.ours(Several, os.environ) if row.variable == "LORADOCK_TEST_PORT"]
    assert meaning == ["In a line and another."]


def test_a_variable_that_nothing_reads_is_told(home: Path) -> None:
    done = loradock("settings", LORADOCK_HOEM="/x", LORADOCK_PLANET="earth")
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "nothing reads LORADOCK_HOEM; LORADOCK_HOME is meant?",
        "nothing reads LORADOCK_PLANET",
    ]


def test_the_defaults_of_mlflows_variables_are_those_that_are_set() -> None:
    told = {variable.variable: variable.default for variable in verb.FOREIGN}
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        assert told[name] == connection._DEFAULTS[name]
