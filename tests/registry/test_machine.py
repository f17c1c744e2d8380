"""What a machine has, read from trees of files as Linux writes them, in containers and outside; and full disks."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import psutil
import pytest

from loradock.registry import machine
from loradock.registry.errors import LoradockError
from loradock.registry.machine import GIB, Memory, is_full, memory, processors
from tests.support.cgroups import tree

NO_LIMIT = "9223372036854771712\n"  # what cgroup v1 says where there is none
HELD = {"memory.current": f"{3 * GIB}\n", "memory.stat": f"anon 1\nactive_file {GIB // 2}\ninactive_file {GIB // 2}\n"}


def test_without_a_limit_it_is_the_machines(tmp_path: Path) -> None:
    assert memory(tree(tmp_path, "0::/\n", {"memory.max": "max\n"})) == Memory(16 * GIB, 12 * GIB)


def test_a_containers_limit_is_what_there_is_less_what_it_holds(tmp_path: Path) -> None:
    """4 GiB, of which 3 are used, 1 of these for files that can be dropped: 2 are available."""
    found = memory(tree(tmp_path, "0::/\n", {"memory.max": f"{4 * GIB}\n", **HELD}))
    assert found == Memory(4 * GIB, 2 * GIB)


def test_a_limit_of_a_group_above_counts(tmp_path: Path) -> None:
    files = {
        "user.slice/memory.max": f"{4 * GIB}\n",
        **{f"user.slice/{name}": text for name, text in HELD.items()},
        "user.slice/run.scope/memory.max": f"{8 * GIB}\n",
        "user.slice/run.scope/memory.current": "0\n",
        "other.slice/memory.max": "1\n",
    }
    assert memory(tree(tmp_path, "0::/user.slice/run.scope\n", files)) == Memory(4 * GIB, 2 * GIB)


def test_a_container_that_is_told_the_machines_name_of_its_group_finds_its_limit(tmp_path: Path) -> None:
    files = {"memory.max": f"{4 * GIB}\n", **HELD}
    assert memory(tree(tmp_path, "0::/docker/1234\n", files)) == Memory(4 * GIB, 2 * GIB)


def test_cgroup_v1_is_read_too(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": NO_LIMIT,
        "memory/docker/memory.limit_in_bytes": f"{4 * GIB}\n",
        "memory/docker/memory.usage_in_bytes": f"{3 * GIB}\n",
        "memory/docker/memory.stat": f"total_active_file {GIB // 2}\ntotal_inactive_file {GIB // 2}\n",
        "cpu/docker/cpu.cfs_quota_us": "50000\n",
        "cpu/docker/cpu.cfs_period_us": "100000\n",
        "cpu/cpu.cfs_quota_us": "-1\n",
        "cpu/cpu.cfs_period_us": "100000\n",
    }
    root = tree(tmp_path, "5:cpu,cpuacct:/docker\n4:memory:/docker\n1:name=systemd:/docker\n0::/\n", files)
    assert memory(root) == Memory(4 * GIB, 2 * GIB)
    assert processors(root) == 1


def test_a_group_above_its_limit_has_nothing_left(tmp_path: Path) -> None:
    files = {"memory.max": f"{GIB}\n", "memory.current": f"{2 * GIB}\n"}
    assert memory(tree(tmp_path, "0::/\n", files)) == Memory(GIB, 0)


def test_a_quota_on_processors_counts(tmp_path: Path) -> None:
    """Half of one is one; and a quota of more than there are adds none."""
    assert processors(tree(tmp_path, "0::/\n", {"cpu.max": "50000 100000\n"})) == 1
    everywhere = len(os.sched_getaffinity(0))
    assert processors(tree(tmp_path, "0::/\n", {"cpu.max": "max 100000\n"})) == everywhere
    assert processors(tree(tmp_path, "0::/\n", {"cpu.max": "99900000 100000\n"})) == everywhere


def test_on_this_machine_there_is_no_more_than_it_has() -> None:
    found = memory()
    assert 0 < found.available <= found.total <= psutil.virtual_memory().total
    assert 1 <= processors() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("flags", "able"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16", True),
        ("flags\t\t: fpu amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16", True),
        ("flags\t\t: fpu avx512f", False),
        ("", False),
    ],
)
def test_bfloat16_is_what_the_processor_multiplies(tmp_path: Path, flags: str, able: bool) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(f"processor\t: 0\n{flags}\n")
    assert machine.has_bfloat16(tmp_path) == able


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "whatever"), True),
        (OSError(errno.EDQUOT, "whatever"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("MLflow failed:\n[Errno 28] No space left on device: 'x'"), True),
        (RuntimeError("I/O error: (os error 28)"), True),
        (RuntimeError("I/O error: (os error 2)"), False),
        (None, False),
    ],
)
def test_a_full_disk_is_known_by_its_number_or_its_words(error: Exception | None, full: bool) -> None:
    assert is_full(error) == full
    wrapped = LoradockError("it could not be stored")
    wrapped.__cause__ = error
    assert is_full(wrapped) == full
