"""What a shell completes: the script in a real bash, and refs from a file, from a server, and from neither."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loradock.cli import VERBS
from loradock.cli.completion import SHELLS, VARIABLE
from loradock.registry import promotion
from loradock.registry.settings import Settings
from loradock.registry.store import Store, names
from tests.support.adapters import make_version
from tests.support.mlflow_server import MLflowServer

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
TRY = """
eval "$(loradock completion bash)"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_loradock_completion loradock
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(*words: str) -> list[str]:
    """What bash puts in place of the last word."""
    environ = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", TRY, "bash", "loradock", *words], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture
def bots(store: Store, tmp_path: Path) -> Store:
    for seed in range(2):
        make_version(store, tmp_path / str(seed), "bot", seed=seed)
    version = make_version(store, tmp_path / "cat", "cat")
    promotion.promote(store, version.ref, "production", actor="tester")
    return store


def test_verbs_come_from_the_table_and_import_nothing() -> None:
    assert completed("") == list(VERBS)
    assert completed("pro") == ["promote"]
    code = "import sys; from loradock.cli import main; main()"
    environ = os.environ | {VARIABLE: "zsh_complete", "COMP_WORDS": "loradock pro", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert "promote" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not {"mlflow", "torch", "trainer", "serving", "loradock.cli.history"} & imported


def test_options_and_refs(bots: Store) -> None:
    assert {"--alias", "--reason"} <= set(completed("promote", "--"))
    assert completed("show", "") == ["bot", "cat", "cat@production"]
    assert completed("show", "bo") == ["bot", "bot/2", "bot/1"]
    assert completed("diff", "cat", "bot/") == ["bot/2", "bot/1"]
    assert completed("list", "c") == ["cat"]
    assert completed("history", "") == ["bot", "cat"]


RECORD = """
eval "$(loradock completion bash)"
loradock() { printf '%s\\n' "$@" > "$RECORDED".part && mv "$RECORDED".part "$RECORDED"; }
"""


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("loradock show cat@pro\t", ["show", "cat@production"]),
        ("loradock show cat@\t", ["show", "cat@production"]),
        ("loradock diff cat@production cat@\t", ["diff", "cat@production", "cat@production"]),
        ("loradock diff cat@production cat/\t", ["diff", "cat@production", "cat/1"]),
        ("loradock hist\tc\t", ["history", "cat"]),
    ],
)
def test_what_the_tab_key_writes_in_bash(bots: Store, tmp_path: Path, keys: str, words: list[str]) -> None:
    recorded, rc = tmp_path / "recorded", tmp_path / "rc"
    rc.write_text(RECORD)
    environ = os.environ | {"RECORDED": str(recorded), "PATH": f"{BIN}:{os.environ['PATH']}", "TERM": "dumb"}
    ours, theirs = pty.openpty()
    bash = ["bash", "--rcfile", rc, "-i"]
    with subprocess.Popen(
        bash, stdin=theirs, stdout=theirs, stderr=theirs, env=environ, start_new_session=True
    ) as shell:
        os.write(ours, f"{keys}\n".encode())
        deadline = time.monotonic() + 60
        while not recorded.exists() and time.monotonic() < deadline:
            if select.select([ours], [], [], 0.1)[0]:
                os.read(ours, 4096)
        shell.kill()
    os.close(ours)
    os.close(theirs)
    assert recorded.read_text().split() == words


def test_completing_makes_nothing_and_says_nothing_where_there_is_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORADOCK_HOME", str(tmp_path / "none"))
    assert completed("show", "") == []
    assert not (tmp_path / "none").exists()
    (tmp_path / "mlflow.db").write_text("no database")
    monkeypatch.setenv("LORADOCK_HOME", str(tmp_path))
    assert completed("show", "") == []
    monkeypatch.setenv("LORADOCK_KEEP", "x")
    assert completed("show", "") == []


def test_no_name_is_part_of_a_question_to_the_store(bots: Store) -> None:
    assert names.matching(bots.settings, "bot' OR 1=1 --/") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one_that_the_shell_reads(shell: str) -> None:
    done = subprocess.run([BIN / "loradock", "completion", shell], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert f"{VARIABLE}={shell}_complete" in done.stdout
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=done.stdout, text=True, check=True)


def test_a_server_is_asked_by_its_interface(bots: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_SECONDS", 60)  # a new server's first answers take longer
    server = MLflowServer(bots.uri, tmp_path)
    server.start()
    try:
        settings = Settings(tracking_uri=server.uri)
        assert names.matching(settings, "") == names.matching(bots.settings, "") == ["bot", "cat", "cat@production"]
        assert names.matching(settings, "bot") == ["bot", "bot/2", "bot/1"]
    finally:
        server.kill()
