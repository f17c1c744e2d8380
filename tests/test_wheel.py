"""What users install: the wheel's files, and the whole loop out of it among packages of our directories' names."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

from loradock.registry.base import LocalBase, identify
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.serving import launch
from tests.support.adapters import write_adapter

ROOT = Path(__file__).resolve().parent.parent
OTHER = "trainer==0.0.36 --hash=sha256:d986702c6d6d988e74a4f8da0f9c11a8c7d89274a11436957e91217a19b487a6\n"
"""Coqui's trainer, which has a top-level package of that name, too."""
WHERE = """
from importlib.util import find_spec
for name in ("loradock", "trainer", "registry", "serving"):
    print((found := find_spec(name)) and found.origin)
"""
THEIRS = "from pathlib import Path\nPath(__file__).with_name('imported').touch()\nraise AssertionError('a stranger')\n"


def build(source: Path, into: Path, *targets: str) -> None:
    """What `pip wheel` and `pip install` do with a tree."""
    words = [word for target in targets for word in ("--target", target)]
    subprocess.run([sys.executable, "-m", "hatchling", "build", *words, "-d", into], cwd=source, check=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the tree's wheel and sdist."""
    directory = tmp_path_factory.mktemp("built")
    build(ROOT, directory, "wheel", "sdist")
    return directory


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


def ours() -> set[str]:
    """The files of loradock/ and of the three directories that it links to."""
    found = (Path(at) / name for at, _, names in os.walk(ROOT / "loradock", followlinks=True) for name in names)
    return {str(path.relative_to(ROOT)) for path in found if path.parent.name != "__pycache__"}


def test_the_wheel_holds_loradock_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name for name in names if ".dist-info/" not in name} == ours()
    assert {"loradock/registry/refs.py", "loradock/trainer/run.py", "loradock/serving/plugin.py"} <= names


def test_the_sdist_holds_it_too_as_files_and_makes_the_same_wheel(built: Path, wheel: Path, tmp_path: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
        archive.extractall(tmp_path, filter="data")
    assert set(members) == ours() | {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO", ".gitignore"}
    assert all(member.isfile() for member in members.values())
    (source,) = tmp_path.iterdir()
    build(source, tmp_path, "wheel")
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel and PyPI's trainer; what they need is this environment's."""
    directory = tmp_path_factory.mktemp("installed")
    venv.create(directory, with_pip=False, symlinks=True)
    (other := directory / "other.txt").write_text(OTHER)
    pip = [sys.executable, "-m", "pip", "--python", directory / "bin" / "python", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-index", wheel], check=True)
    subprocess.run([*pip, "--only-binary", ":all:", "--require-hashes", "--requirement", other], check=True)
    (packages,) = directory.glob("lib/python*/site-packages")
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")  # a .pth file there is not followed
    return directory / "bin"


@pytest.fixture
def among_others(tmp_path: Path) -> Path:
    """A directory with packages of our directories' names, which notice when they are imported."""
    directory = tmp_path / "project"
    for name in ("loradock", "registry", "trainer", "serving"):
        (directory / name).mkdir(parents=True)
        (directory / name / "__init__.py").write_text(THEIRS)
    return directory


@pytest.mark.story
@pytest.mark.slow
def test_what_is_installed_does_all_of_it_among_packages_of_the_same_names(
    installed: Path, among_others: Path, home: Path, shallow_dir: Path, tmp_path: Path
) -> None:
    from tests.support.serving.shallow import shallow
    from tests.support.trainer.training import written

    def run(*words: str | Path) -> str:
        done = subprocess.run(words, cwd=among_others, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    def loradock(*words: str | Path) -> Any:
        return json.loads(run(installed / "loradock", *words, "--json"))

    places = run(installed / "python", "-P", "-c", WHERE).splitlines()
    packages = sysconfig.get_path("purelib", vars={"base": str(installed.parent)})
    assert places == [f"{packages}/loradock/__init__.py", f"{packages}/trainer/__init__.py", "None", "None"]
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] in run(
        installed / "loradock", "--version"
    )
    assert "promote" in run(installed / "loradock", "--help")

    written(among_others, shallow_dir, rows=8, training={"max_steps": 1, "dtype": "float32"})
    assert loradock("train", "tiny.yaml", "--processes", "2")["steps"] == 1
    adapter = write_adapter(tmp_path / "adapter", scale=8.0)
    version = loradock("import", adapter, "--name", "bot", "--base", shallow_dir)["version"]
    loradock("promote", version)

    store, base = Store(Settings()), LocalBase(shallow_dir, identify(shallow_dir, base_id="base"))
    # What vLLM remembers of a model spares it a process that loads plugins.
    environ = {"VLLM_LOGGING_LEVEL": "DEBUG", "VLLM_CACHE_ROOT": str(tmp_path / "vllm")}
    with shallow(home, base, store, tmp_path, environ, program=installed / "loradock", cwd=among_others) as server:
        server.until(lambda status: status["adapters"].get("bot", {}).get("version") == version)
        assert server.complete("bot", tokens=4)[0] == version
    loading = set(re.findall("Loading plugin (loradock.*)", server.text))
    assert loading == {"loradock", "loradock-cpu-ops"} if launch.on_cpu() else {"loradock"}
    assert "Failed to load plugin" not in server.text
    assert list(among_others.rglob("imported")) == []
