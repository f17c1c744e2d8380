"""The files that hold references for a restart without the registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from loradock.registry.errors import Unreachable
from loradock.registry.reference import Reference
from loradock.serving.references import References
from tests.support.adapters import SMOL
from tests.support.registry.references import reference
from tests.support.serving.versions import ONE

KNOWN = reference(adapter=ONE.facts.digest)


class FakeRegistry:
    """One that can go away."""

    def __init__(self, *known: Reference) -> None:
        self.known = {found.adapter: found for found in known}
        self.gone = False

    def find(self, digest: str) -> Reference | None:
        if self.gone:
            raise Unreachable("out of reach")
        return self.known.get(digest)


def test_one_that_was_kept_is_there_without_the_registry(tmp_path: Path) -> None:
    registry = FakeRegistry(KNOWN)
    references = References(tmp_path / "references", SMOL, registry.find)
    assert references.of(ONE) == KNOWN
    assert not (tmp_path / "references").exists()
    references.keep(KNOWN)
    registry.gone = True
    assert References(tmp_path / "references", SMOL, registry.find).of(ONE) == KNOWN


def test_unknown_is_told_from_out_of_reach(tmp_path: Path) -> None:
    registry = FakeRegistry()
    references = References(tmp_path, SMOL, registry.find)
    assert references.of(ONE) is None
    registry.gone = True
    with pytest.raises(Unreachable):
        references.of(ONE)


@pytest.mark.parametrize("content", ["", "{", "{}"])
def test_a_file_that_cannot_be_read_is_fetched_again(content: str, tmp_path: Path) -> None:
    references = References(tmp_path, SMOL, FakeRegistry(KNOWN).find)
    references.keep(KNOWN)
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    assert references.of(ONE) == KNOWN
    references.keep(KNOWN)
    assert Reference.model_validate_json(file.read_bytes()) == KNOWN


def test_another_base_s_is_not_taken(tmp_path: Path) -> None:
    References(tmp_path, SMOL, FakeRegistry().find).keep(KNOWN)
    for change in ({"weights_digest": "0" * 64}, {"config_digest": "0" * 64}):
        assert References(tmp_path, SMOL.model_copy(update=change), FakeRegistry().find).of(ONE) is None


def test_a_directory_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    References(tmp_path / "file", SMOL, FakeRegistry().find).keep(KNOWN)
