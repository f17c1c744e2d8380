"""Tests lie beside tests, and what they share lies in tests/support."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
FILES = [path for path in TESTS.rglob("*.py") if TESTS / "support" not in path.parents]
PROGRAMS = {TESTS / "faults" / "run.py", TESTS / "hunt.py", TESTS / "stack" / "run.py"}


def test_no_module_imports_a_test_module() -> None:
    pattern = re.compile(r"^\s*(from|import) tests\.(?!support\b)", re.MULTILINE)
    assert [path for path in TESTS.rglob("*.py") if pattern.search(path.read_text(encoding="utf-8"))] == []


def test_what_is_no_test_lies_in_support() -> None:
    others = {path for path in FILES if not path.name.startswith("test_") and path.name != "conftest.py"}
    assert others == PROGRAMS


def test_support_holds_no_tests() -> None:
    assert list((TESTS / "support").rglob("test_*.py")) == []


@pytest.mark.parametrize("name", ["registry", "trainer", "serving"])
def test_a_directory_of_the_tree_is_imported_as_loradocks_alone(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1] == f"ImportError: this package is loradock.{name}; import it by that name"


def test_nothing_names_a_module_as_if_the_directory_were_a_package() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    kinds = (".md", ".py", ".sh", ".toml", ".yaml", ".yml")
    paths = [ROOT / line for line in listed.splitlines() if line.endswith(kinds)]
    rooms = "(registry|trainer|serving)"
    imports = rf"^\s*(from|import) {rooms}\b(?!_)"
    targets = rf"""(?<![\w./]){rooms}(\.\w+)+:[A-Za-z_]|["']{rooms}(\.(?!py\b|yaml\b)[a-z_]+)+["']|-m {rooms}\b"""
    pattern = re.compile(f"{imports}|{targets}", re.MULTILINE)
    found = {path.relative_to(ROOT): pattern.search(path.read_text(encoding="utf-8")) for path in paths}
    assert {path: match[0] for path, match in found.items() if match} == {}
