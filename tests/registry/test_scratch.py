"""A disk that is full, as processes that may write no more than so many bytes see it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loradock.registry.errors import LoradockError
from loradock.registry.scratch import room, scratch


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_by_its_directory(tmp_path: Path, number: int) -> None:
    other = tmp_path / "store" / "file"
    for told, error in (
        (tmp_path / "here", OSError(number, os.strerror(number))),
        (tmp_path / "here", OSError(number, os.strerror(number), str(tmp_path / "here" / "file"))),
        (other.parent, OSError(number, os.strerror(number), str(tmp_path / "here" / "file"), None, str(other))),
    ):
        with pytest.raises(LoradockError, match=f"no room left in {told}$"), room(tmp_path / "here"):
            raise error


def test_what_mlflow_says_of_a_full_disk_is_told_too(tmp_path: Path) -> None:
    with pytest.raises(LoradockError, match=f"no room left in {tmp_path}$"), room(tmp_path):
        raise LoradockError("MLflow refused") from RuntimeError("[Errno 28] No space left on device")


def test_other_errors_go_as_they_came(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), room(tmp_path):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(LoradockError, match=r"^mine$"), room(tmp_path):
        raise LoradockError("mine")


def test_the_directory_is_gone_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(NotADirectoryError), scratch() as directory:
        Path(shutil.copy(__file__, directory)).iterdir().__next__()
    assert list(tmp_path.iterdir()) == []


def test_no_place_to_write_at_all() -> None:
    code = """
import resource
from loradock.registry.errors import LoradockError
from loradock.registry.scratch import scratch
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    with scratch(): pass
except LoradockError as error:
    print(error, error.hint)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no directory for temporary files" in done.stdout
