"""What the Hub answers becomes one of our errors, and what it holds is fetched without its code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.registry.fake_hub import FakeHub, hub

FILES = {"train.jsonl": b'{"text": "a"}\n', "rows.py": b"raise SystemExit", "weights.bin": b"", "README.md": b"# Rows"}
CODE = """
import sys
from loradock.registry import errors, hub
try:
    here = {"here": True} if sys.argv[3:] else {}
    print(sorted(path.name for path in getattr(hub, sys.argv[1])(sys.argv[2], None, **here).iterdir()))
except errors.LoradockError as error:
    print(f"{type(error).__name__}: {error}; {error.hint}")
"""


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    """A Hub with one data set that can be fetched, and several that cannot."""
    with hub(tmp_path_factory.mktemp("hub") / "hub") as found:
        for name in ("org/rows", "org/gated", "org/broken", "org/denied", "org/revision"):
            found.make(name, private=False, kind="datasets", gated=name == "org/gated")
            found.change(name, FILES, title="Rows", kind="datasets")
        found.fail("org/broken", 418)
        found.fail("org/denied", 401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
        found.fail("org/revision", 404, headers={"X-Error-Code": "RevisionNotFound"})
        yield found


def fetch(home: Path, answering: FakeHub, repository: str, kind: str = "dataset_snapshot", *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE, kind, repository, *words],
        env={**os.environ, **answering.environment(home)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    ("repository", "said"),
    [
        ("org/missing", "NotFound: the Hub has no data set 'org/missing'; check its name"),
        ("org/gated", "NotFound: the data set 'org/gated' is gated; ask for access on its page"),
        ("org/revision", "NotFound: the Hub has no data set 'org/revision'; "),
        ("org/..x", "NotFound: the Hub has no data set 'org/..x'; "),
        ("org/denied", "Unreachable: the Hub does not hand out the data set 'org/denied': it answers 401; "),
        ("org/broken", "Unreachable: the Hub cannot be reached, and 'org/broken' is not in its local cache; "),
    ],
)
def test_what_the_hub_answers_is_told(tmp_path: Path, answering: FakeHub, repository: str, said: str) -> None:
    assert fetch(tmp_path, answering, repository).startswith(said)


def test_only_rows_and_the_readme_are_fetched(tmp_path: Path, answering: FakeHub) -> None:
    assert fetch(tmp_path, answering, "org/rows") == "['README.md', 'train.jsonl']\n"


def test_a_model_that_is_not_there(tmp_path: Path, answering: FakeHub) -> None:
    assert fetch(tmp_path, answering, "org/missing", "snapshot").startswith(
        "NotFound: the Hub has no model 'org/missing'"
    )


@pytest.mark.slow
def test_what_must_be_here_is_not_fetched(tmp_path: Path, answering: FakeHub) -> None:
    answering.make("org/base", private=False)
    files: dict[str, bytes | dict[str, Any] | None] = {"config.json": b"{}", "model.safetensors": b"weights"}
    answering.change("org/base", files, title="Base")
    answering.asked.clear()
    missing = "NotFound: the model 'org/base' of the Hub is not on this machine, or not all of it"
    assert fetch(tmp_path, answering, "org/base", "snapshot", "here").startswith(missing)
    assert answering.asked == []
    assert fetch(tmp_path, answering, "org/base", "config") == "['config.json']\n"
    answering.asked.clear()
    assert fetch(tmp_path, answering, "org/base", "snapshot", "here").startswith(missing)
    assert answering.asked == []
    whole = fetch(tmp_path, answering, "org/base", "snapshot")
    answering.asked.clear()
    assert (
        whole == fetch(tmp_path, answering, "org/base", "snapshot", "here") == "['config.json', 'model.safetensors']\n"
    )
    assert answering.asked == []


@pytest.mark.slow
def test_a_part_that_another_program_left_in_the_cache_is_not_the_base(tmp_path: Path, answering: FakeHub) -> None:
    """Transformers keeps no list of a repository's files beside what it has fetched."""
    repository = tmp_path / "hub" / "models--org--parts"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    (snapshot / "config.json").write_text("{}")
    missing = "NotFound: the model 'org/parts' of the Hub is not on this machine, or not all of it"
    assert fetch(tmp_path, answering, "org/parts", "snapshot", "here").startswith(missing)
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "one.safetensors").touch()
    assert fetch(tmp_path, answering, "org/parts", "snapshot", "here").startswith(missing)
    (snapshot / "two.safetensors").touch()
    assert "two.safetensors" in fetch(tmp_path, answering, "org/parts", "snapshot", "here")
