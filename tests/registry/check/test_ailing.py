from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.registry.ailing import CASES, Case, make_bases


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_bases(tmp_path_factory.mktemp("bases"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_doctor_finds_what_ails_it_and_nothing_else(case: Case, bases: dict[str, Path], tmp_path: Path) -> None:
    found = case.examine(tmp_path / "adapter", bases)
    assert {finding.code for finding in found.findings} == case.codes, found
    assert found.verdict == case.verdict
