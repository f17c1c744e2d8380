"""Tests lie beside tests, and what they share lies in tests/support."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
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
