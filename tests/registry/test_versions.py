from __future__ import annotations

from pathlib import Path

import pytest

from registry import versions
from registry.artifact import CONFIG, WEIGHTS, build_manifest, verify
from registry.base import LocalBase
from registry.errors import BadInput, Conflict, DigestMismatch, NotFound, NotServable
from registry.refs import VersionRef
from registry.settings import Settings
from registry.store import Store
from tests.adapters import log_adapter, make_version, write_adapter


def stored_weights(settings: Settings) -> Path:
    (found,) = settings.artifacts.rglob(WEIGHTS)
    return found


def test_a_run_becomes_a_version_that_holds_its_bytes_and_facts(store: Store, tmp_path: Path) -> None:
    version = make_version(store, tmp_path / "a", rank=8)
    assert version.ref == VersionRef("support-bot", 1)
    assert version.facts.rank == 8
    assert version.facts.digest == build_manifest(tmp_path / "a").digest
    assert version.findings == ()
    assert store.version(version.ref) == version
    outputs = store.client.get_run(version.facts.run_id).outputs.model_outputs
    assert [f"models:/{output.model_id}" for output in outputs] == [version.source]  # MLflow's UI links run and adapter
    with versions.fetched(store, version) as directory:
        verify(directory, version.facts.digest, what="support-bot/1")


def test_the_same_bytes_are_one_version_and_others_are_the_next(store: Store, tmp_path: Path) -> None:
    first = make_version(store, tmp_path / "a")
    assert make_version(store, tmp_path / "b").ref == first.ref
    assert versions.register(store, first.facts.run_id, "support-bot").ref == first.ref
    assert make_version(store, tmp_path / "c", seed=1).ref.number == 2
    assert [version.ref.number for version in store.versions("support-bot")] == [1, 2]


def test_a_request_that_was_sent_twice_still_gives_one_version(store: Store, tmp_path: Path) -> None:
    first = make_version(store, tmp_path / "a")
    store.create_version("support-bot", first.source, first.facts, ())  # MLflow makes a second one
    assert versions.register(store, first.facts.run_id, "support-bot").ref == first.ref


def test_an_adapter_that_cannot_be_served_is_kept_with_what_was_found(store: Store, tmp_path: Path) -> None:
    version = make_version(store, tmp_path / "a", config={"use_dora": True})
    assert "DoRA" in version.findings[0]
    assert store.version(version.ref).findings == version.findings


def test_bytes_that_changed_since_training_make_no_version(store: Store, settings: Settings, tmp_path: Path) -> None:
    run_id = log_adapter(store, write_adapter(tmp_path / "a"))
    path = stored_weights(settings)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(DigestMismatch, match=WEIGHTS):
        versions.register(store, run_id, "support-bot")
    assert store.find_family("support-bot") is None


def test_a_run_without_adapter_and_no_run_at_all(store: Store) -> None:
    run = store.client.create_run("0", run_name="bare")
    with pytest.raises(BadInput, match="no finished adapter"):
        versions.register(store, run.info.run_id, "support-bot")
    with pytest.raises(NotFound, match=r"f{32}"):
        versions.register(store, "f" * 32, "support-bot")


def test_a_registered_model_that_something_else_made_is_left_alone(store: Store, tmp_path: Path) -> None:
    store.client.create_registered_model("support-bot")
    with pytest.raises(Conflict, match="something else"):
        make_version(store, tmp_path / "a")
    assert store.versions("support-bot") == ()


def test_a_version_or_family_that_is_not_there(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nobody/1"):
        store.version(VersionRef("nobody", 1))
    with pytest.raises(NotFound, match="nobody"):
        store.family("nobody")
    make_version(store, tmp_path / "a")
    with pytest.raises(NotFound, match="support-bot/2"):
        store.version(VersionRef("support-bot", 2))


def test_an_adapter_from_elsewhere_becomes_a_version_with_a_run_that_says_so(
    store: Store, base: LocalBase, tmp_path: Path
) -> None:
    directory = write_adapter(tmp_path / "axolotl-out", rank=8)
    (directory / "README.md").write_text("a card")
    version = versions.import_directory(store, directory, base, "support-bot")
    assert (version.facts.method, version.facts.rank, version.facts.targets) == ("lora", 8, ("o_proj", "q_proj"))
    assert version.facts.base == base.base
    assert version.findings == ()
    run = store.client.get_run(version.facts.run_id)
    assert (run.info.status, run.data.tags["loradock.imported_from"]) == ("FINISHED", "axolotl-out")
    with versions.fetched(store, version) as found:
        assert sorted(path.name for path in found.iterdir()) == [CONFIG, WEIGHTS, "manifest.json"]
    assert versions.import_directory(store, directory, base, "support-bot").ref == version.ref


def test_an_adapter_of_another_shape_is_not_imported(store: Store, base: LocalBase, tmp_path: Path) -> None:
    with pytest.raises(NotServable, match="2048 wide where the base is 576"):
        versions.import_directory(store, write_adapter(tmp_path / "a", hidden=2048), base, "support-bot")
    assert store.find_family("support-bot") is None


def test_what_holds_no_adapter_is_told_with_what_to_do(store: Store, base: LocalBase, tmp_path: Path) -> None:
    def fault(directory: Path) -> str:
        with pytest.raises((BadInput, NotFound)) as caught:
            versions.import_directory(store, directory, base, "support-bot")
        return f"{caught.value} {caught.value.hint}"

    assert "no directory" in fault(tmp_path / "nothing")
    assert "no adapter_config.json" in fault(tmp_path)
    write_adapter(tmp_path / "checkpoint-20")
    assert "checkpoint-20" in fault(tmp_path)
    (tmp_path / "checkpoint-20" / WEIGHTS).rename(tmp_path / "checkpoint-20" / "adapter_model.bin")
    assert "pickled" in fault(tmp_path / "checkpoint-20")
