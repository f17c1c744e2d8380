"""`loradock import ORG/NAME`, with the Hub's own client, against a server that answers as the Hub does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loradock.registry import versions
from loradock.registry.artifact import CONFIG, WEIGHTS
from loradock.registry.refs import VersionRef
from loradock.registry.store import Store
from tests.support import shell
from tests.support.adapters import write_adapter
from tests.support.registry.fake_hub import FakeHub, hub

pytestmark = [pytest.mark.slow, pytest.mark.story]

Command = Callable[..., shell.Done]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    directory = write_adapter(tmp_path / "calm")
    for name in ("README.md", "tokenizer.json", "training_args.bin"):
        (directory / name).write_text("{}")
    return directory


@pytest.fixture
def holding(repository: Path, tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub that holds that adapter as org/calm."""
    with hub(tmp_path / "hub") as found:
        found.upload("org/calm", repository)
        yield found


@pytest.fixture
def command(store: Store, base_dir: Path, holding: FakeHub, tmp_path: Path) -> Command:
    """`loradock import` against that Hub."""

    def run(source: str, *options: str) -> shell.Done:
        words = ["import", source, "--name", "support-bot", "--base", str(base_dir), "--json", *options]
        return shell.loradock(*words, **holding.environment(tmp_path / "hf"))

    return run


def test_an_adapter_from_the_hub_is_imported_with_its_commit(
    store: Store, command: Command, holding: FakeHub, repository: Path
) -> None:
    done = command("org/calm@main")
    assert done.exit_code == 0, done.err
    version = store.version(VersionRef("support-bot", 1))
    assert json.loads(done.out)["digest"] == version.facts.digest
    assert holding.fetched() == {CONFIG, WEIGHTS}
    commit = holding.read("org/calm")["commits"][-1]["id"]
    run = store.client.get_run(version.facts.run_id)
    assert (run.info.run_name, run.data.tags["loradock.imported_from"]) == (
        f"import org/calm@{commit}",
        f"org/calm@{commit}",
    )
    with versions.fetched(store, version) as found:
        assert (found / WEIGHTS).read_bytes() == (repository / WEIGHTS).read_bytes()


def test_a_pickle_on_the_hub_is_fetched_only_when_it_is_to_be_converted(
    store: Store, command: Command, holding: FakeHub, repository: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    pickle = repository / "adapter_model.bin"
    torch.save(load_file(repository / WEIGHTS), pickle)
    holding.change("org/calm", {WEIGHTS: None, pickle.name: pickle.read_bytes()}, title="Pickle it")
    done = command("org/calm")
    assert done.exit_code == 2
    assert "--convert-pickle" in done.err
    assert holding.fetched() == {CONFIG}
    done = command("org/calm", "--convert-pickle")
    assert done.exit_code == 0, done.err
    assert holding.fetched() == {CONFIG, "adapter_model.bin"}
    versions.verify(store, store.version(VersionRef("support-bot", 1)))


def test_a_repository_on_the_hub_without_adapter(command: Command, holding: FakeHub) -> None:
    holding.change("org/calm", {CONFIG: None}, title="Take it away")
    done = command("org/calm")
    assert done.exit_code == 2
    assert f"org/calm on the Hub holds no {CONFIG} at its root" in done.err
