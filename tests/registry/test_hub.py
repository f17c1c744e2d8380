"""What the Hub answers becomes one of our errors, and what it holds is fetched without its code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import Hub, hub

FILES = {"train.jsonl": b'{"text": "a"}\n', "rows.py": b"raise SystemExit", "weights.bin": b"", "README.md": b"# Rows"}
CODE = """
import sys
from registry import errors, hub
try:
    print(sorted(path.name for path in getattr(hub, sys.argv[1])(sys.argv[2], None).iterdir()))
except errors.LoradockError as error:
    print(f"{type(error).__name__}: {error}; {error.hint}")
"""


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub with one data set that can be fetched, and several that cannot."""
    with hub(tmp_path_factory.mktemp("hub") / "hub") as found:
        for name in ("org/rows", "org/gated", "org/broken", "org/denied", "org/revision"):
            found.make(name, private=False, kind="datasets", gated=name == "org/gated")
            found.change(name, FILES, title="Rows", kind="datasets")
        found.fail("org/broken", 418)
        found.fail("org/denied", 401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
        found.fail("org/revision", 404, headers={"X-Error-Code": "RevisionNotFound"})
        yield found


def fetch(home: Path, answering: Hub, repository: str, kind: str = "dataset_snapshot") -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE, kind, repository],
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
def test_what_the_hub_answers_is_told(tmp_path: Path, answering: Hub, repository: str, said: str) -> None:
    assert fetch(tmp_path, answering, repository).startswith(said)


def test_only_rows_and_the_readme_are_fetched(tmp_path: Path, answering: Hub) -> None:
    assert fetch(tmp_path, answering, "org/rows") == "['README.md', 'train.jsonl']\n"


def test_a_model_that_is_not_there(tmp_path: Path, answering: Hub) -> None:
    assert fetch(tmp_path, answering, "org/missing", "snapshot").startswith(
        "NotFound: the Hub has no model 'org/missing'"
    )
