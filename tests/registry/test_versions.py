from __future__ import annotations

import json
import logging
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from loradock.cli import cli
from loradock.registry import promotion, versions
from loradock.registry.artifact import CONFIG, MANIFEST, WEIGHTS, build_manifest, verify
from loradock.registry.base import LocalBase
from loradock.registry.errors import BadInput, DigestMismatch, NotFound, NotServable, Refused, Taken
from loradock.registry.records import Version
from loradock.registry.refs import VersionRef
from loradock.registry.settings import Settings
from loradock.registry.store import Store, candidates
from loradock.registry.store.families import LEDGERS
from tests.support.adapters import log_adapter, make_version, write_adapter


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


def test_what_is_in_the_making_is_not_seen(store: Store, tmp_path: Path) -> None:
    first = make_version(store, tmp_path / "a")
    candidates.offer(
        store, store.family("support-bot"), first.source, first.facts, ()
    )  # as a request that was sent twice
    assert store.versions("support-bot") == (first,)
    assert store.find_version("support-bot", first.facts.digest) == first
    with pytest.raises(NotFound, match="support-bot/2"):
        store.version(VersionRef("support-bot", 2))
    assert versions.register(store, first.facts.run_id, "support-bot").ref == first.ref
    assert [item.version for item in store.client.search_model_versions("name = 'support-bot'")] == [1]


def test_a_version_made_from_others_is_their_child_only_when_it_is_seen(store: Store, tmp_path: Path) -> None:
    first = make_version(store, tmp_path / "a")
    facts = first.facts.model_copy(update={"digest": "f" * 64, "parents": ("support-bot/1",)})
    candidates.offer(store, store.family("support-bot"), first.source, facts, ())
    (made,) = candidates.same(store, "support-bot", facts.digest)
    assert "loradock.parent.support-bot/1" not in store.tags(made.ref)
    candidates.admit(store, made)
    assert store.tags(made.ref)["loradock.parent.support-bot/1"] == "yes"
    assert store.version(made.ref).facts == facts


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
    with pytest.raises(Taken, match="something else"):
        make_version(store, tmp_path / "a")
    assert store.versions("support-bot") == ()


def test_a_name_that_is_a_prompt_of_mlflows_is_refused_before_anything_is_written(
    store: Store, base: LocalBase, tmp_path: Path
) -> None:
    store.client.register_prompt("greeting", "Hello {{name}}")
    run_id = log_adapter(store, write_adapter(tmp_path / "a"))
    database = (store.settings.root / "mlflow.db").read_bytes()
    with pytest.raises(Taken, match="a prompt"):
        versions.register(store, run_id, "greeting")
    with pytest.raises(Taken, match="a prompt"):
        versions.import_directory(store, write_adapter(tmp_path / "b", seed=1), base, "greeting")
    assert (store.settings.root / "mlflow.db").read_bytes() == database


def test_a_version_is_held_against_its_own_base_where_that_is_at_hand(
    home: Path, store: Store, base: LocalBase, tmp_path: Path
) -> None:
    def registered(directory: Path, name: str) -> Version:
        run_id = log_adapter(store, directory, base=base.base)
        found = CliRunner().invoke(cli, ["register", run_id, "--name", name, "--no-reference"])
        assert found.exit_code == 0, found.output
        return store.version(VersionRef(name, 1))

    (doubt,) = make_version(store, tmp_path / "a").doubts
    assert "not at hand" in doubt
    assert registered(write_adapter(tmp_path / "b"), "at-hand").servable == "yes"
    deeper = registered(write_adapter(tmp_path / "c", layers=31), "deeper")
    assert (deeper.servable, deeper.doubts) == ("no", ())
    assert "2 modules are not in the base" in deeper.findings[0]


def test_a_name_may_have_a_dot(store: Store, base: LocalBase, tmp_path: Path) -> None:
    found = versions.import_directory(store, write_adapter(tmp_path / "a", layers=30), base, "qwen2.5-bot")
    assert str(found.ref) == "qwen2.5-bot/1"


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
    assert (version.findings, version.doubts, version.servable) == ((), (), "yes")
    run = store.client.get_run(version.facts.run_id)
    assert (run.info.status, run.data.tags["loradock.imported_from"]) == ("FINISHED", "axolotl-out")
    with versions.fetched(store, version) as found:
        assert sorted(path.name for path in found.iterdir()) == [CONFIG, WEIGHTS, "manifest.json"]
    assert versions.import_directory(store, directory, base, "support-bot").ref == version.ref


def test_an_adapter_of_another_shape_is_not_imported(store: Store, base: LocalBase, tmp_path: Path) -> None:
    with pytest.raises(NotServable, match="2048 wide where the base is 576"):
        versions.import_directory(store, write_adapter(tmp_path / "a", hidden=2048), base, "support-bot")
    assert store.find_family("support-bot") is None


@pytest.mark.parametrize(
    ("module", "shapes"),
    [
        ("model.unembed_tokens", ((4, 576), (49152, 4))),  # Tinker's name for the head
        ("model.layers.0.self_attn.qkv_proj", ((4, 576), (960, 4))),
        ("model.visual.blocks.0.attn.proj", ((4, 576), (576, 4))),
    ],
)
def test_an_adapter_of_a_module_that_the_base_lacks_is_not_imported(
    store: Store, base: LocalBase, tmp_path: Path, module: str, shapes: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    directory = write_adapter(tmp_path / "a", config={"target_modules": ["q_proj", "o_proj", module]})
    more = {
        f"base_model.model.{module}.lora_{side}.weight": np.ones(shape, "float32")
        for side, shape in zip("AB", shapes, strict=True)
    }
    save_file(load_file(directory / WEIGHTS) | more, directory / WEIGHTS)
    with pytest.raises(NotServable, match=f"1 modules are not in the base: {module}"):
        versions.import_directory(store, directory, base, "support-bot")
    assert store.find_family("support-bot") is None


def test_what_the_base_says_against_an_imported_adapter_is_kept_with_the_version(
    store: Store, base: LocalBase, tmp_path: Path
) -> None:
    directory = write_adapter(tmp_path / "a")
    tensors = load_file(directory / WEIGHTS)
    save_file({name.replace("model.model.", "model."): value for name, value in tensors.items()}, directory / WEIGHTS)
    (found,) = versions.import_directory(store, directory, base, "support-bot").findings
    assert "4 modules have another name in the base" in found


def test_what_holds_no_adapter_is_told_with_what_to_do(store: Store, base: LocalBase, tmp_path: Path) -> None:
    def fault(directory: Path) -> str:
        with pytest.raises((BadInput, NotFound)) as caught:
            versions.import_directory(store, directory, base, "support-bot")
        return " ".join((str(caught.value), *caught.value.problems, caught.value.hint))

    assert "no directory" in fault(tmp_path / "nothing")
    assert "no adapter_config.json" in fault(tmp_path)
    write_adapter(tmp_path / "checkpoint-20")
    assert "checkpoint-20" in fault(tmp_path)
    (tmp_path / "checkpoint-20" / WEIGHTS).rename(tmp_path / "checkpoint-20" / "adapter_model.bin")
    assert "pickled" in fault(tmp_path / "checkpoint-20")


def test_where_an_adapter_came_from_and_what_it_says_of_its_base_is_kept(
    store: Store, base: LocalBase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = {"base_model_name_or_path": "unsloth/Qwen3-8B-bnb-4bit", "revision": "main", "unsloth_fixed": True}
    out = tmp_path / "out"
    write_adapter(out / "checkpoint-20", config=said)
    (out / "trainer_log.jsonl").write_text("")
    with caplog.at_level(logging.INFO, logger="loradock.registry"):
        version = versions.import_directory(store, out, base, "support-bot", checkpoint="last")
    tags = store.client.get_run(version.facts.run_id).data.tags
    assert tags["loradock.imported_from"] == "out/checkpoint-20"
    assert tags["loradock.claimed_base"] == "unsloth/Qwen3-8B-bnb-4bit"
    assert tags["loradock.claimed_revision"] == "main"
    left, unknown, doubt = caplog.messages
    assert left == "left aside: checkpoint-20/manifest.json, trainer_log.jsonl"
    assert unknown.endswith("which are dropped: unsloth_fixed")
    assert "'unsloth/Qwen3-8B-bnb-4bit'" in doubt
    with versions.fetched(store, version) as found:
        assert "unsloth_fixed" not in json.loads((found / CONFIG).read_text())


def test_a_configuration_that_does_more_than_is_known_is_refused(store: Store, base: LocalBase, tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "a", config={"use_tomorrow": True})
    with pytest.raises(Refused, match="use_tomorrow: True"):
        versions.import_directory(store, directory, base, "support-bot")
    assert store.find_family("support-bot") is None


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": [1, "q_proj"]},
        {"r": "many"},
        {"rank_pattern": ["q_proj"]},
        {"rank_pattern": {"q_proj": "x"}},
        {"r": 1e999},
    ],
)
def test_a_configuration_of_impossible_values_is_bad_input(
    store: Store, base: LocalBase, tmp_path: Path, config: dict[str, Any]
) -> None:
    with pytest.raises(BadInput, match="PEFT cannot mean"):
        versions.import_directory(store, write_adapter(tmp_path / "a", config=config), base, "support-bot")


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00", "[" * 100_000, "\N{BYTE ORDER MARK}{}"])
def test_a_configuration_that_cannot_be_read_is_bad_input(
    store: Store, base: LocalBase, tmp_path: Path, text: str
) -> None:
    directory = write_adapter(tmp_path / "a")
    (directory / CONFIG).write_text(text)
    with pytest.raises(BadInput, match=CONFIG):
        versions.import_directory(store, directory, base, "support-bot")


def damage(directory: Path, how: str) -> None:
    weights = directory / WEIGHTS
    if how == "changed":
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    elif how == "cut off":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif how == "missing":
        (directory / CONFIG).unlink()
    elif how == "extra":
        (directory / "more").mkdir()
        (directory / "more" / "evil.bin").write_bytes(b"x")
    elif how == "extra manifest":
        (directory / "more").mkdir()
        shutil.copy(directory / MANIFEST, directory / "more")
    elif how == "manifest":
        (directory / MANIFEST).write_text((directory / MANIFEST).read_text() + " ")
    elif how == "manifest of nothing":
        (directory / MANIFEST).write_bytes(b"\xff")
    elif how == "manifest gone":
        (directory / MANIFEST).unlink()
    else:
        shutil.rmtree(directory)


FAULTS = {
    "changed": (f"{WEIGHTS} changed",),
    "cut off": (f"{WEIGHTS} changed",),
    "missing": (f"{CONFIG} is missing",),
    "extra": ("more/evil.bin is extra",),
    "extra manifest": (f"more/{MANIFEST} is extra",),
    "manifest": (f"{MANIFEST} changed",),
    "manifest of nothing": (f"{MANIFEST} changed",),
    "manifest gone": (f"{MANIFEST} is missing",),
    "all gone": ("manifest.json is missing",),
}


@pytest.mark.parametrize("how", FAULTS)
def test_whatever_is_done_to_stored_files_is_found(store: Store, settings: Settings, tmp_path: Path, how: str) -> None:
    version = make_version(store, tmp_path / "a")
    versions.verify(store, version)
    damage(stored_weights(settings).parent, how)
    with pytest.raises(DigestMismatch) as caught:
        versions.verify(store, version)
    assert caught.value.faults == FAULTS[how]
    assert caught.value.exit_code == 3


def test_verifying_all_versions_names_every_fault_and_the_history(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    for seed, word in enumerate(("good", "changed", "missing")):
        version = make_version(store, tmp_path / word, seed=seed)
        source = version.source.removeprefix("models:/")
        (weights,) = settings.artifacts.rglob(f"{source}/**/{WEIGHTS}")
        if word != "good":
            damage(weights.parent, word)
    answer = CliRunner().invoke(cli, ["verify", "support-bot", "--all", "--json"])
    assert [row["faults"] for row in json.loads(answer.stdout)] == [[], [*FAULTS["changed"]], [*FAULTS["missing"]]]
    assert answer.stderr == "1 of 3 versions of support-bot hold the bytes that were registered\n"
    assert isinstance(answer.exception, Refused)
    assert answer.exception.problems == (
        f"support-bot/2: {WEIGHTS} changed",
        f"support-bot/3: {CONFIG} is missing",
    )
    promotion.promote(store, VersionRef("support-bot", 1), "production", actor="ann")
    promotion.promote(store, VersionRef("support-bot", 2), "production", actor="ann")
    with sqlite3.connect(settings.root / "mlflow.db") as database:
        database.execute("UPDATE params SET value = replace(value, 'ann', 'eve') WHERE key = '00000000'")
    answer = CliRunner().invoke(cli, ["verify", "support-bot", "--all", "--json"])
    assert isinstance(answer.exception, Refused)
    assert "entry 1" in answer.exception.problems[0]
    assert len(answer.exception.problems) == 3


def test_verifying_all_versions_names_an_alias_whose_version_lost_its_tags(store: Store, tmp_path: Path) -> None:
    make_version(store, tmp_path / "one")
    promotion.promote(store, VersionRef("support-bot", 1), "production", actor="ann")
    store.client.delete_model_version_tag("support-bot", "1", "loradock.digest")
    answer = CliRunner().invoke(cli, ["verify", "support-bot", "--all", "--json"])
    assert isinstance(answer.exception, Refused)
    [problem] = answer.exception.problems
    assert problem.startswith("support-bot@production is at support-bot/1, and MLflow has no such version, or not the")


def test_verifying_all_versions_names_a_history_that_is_in_mlflows_bin(store: Store, tmp_path: Path) -> None:
    make_version(store, tmp_path / "one")
    run = store.family("support-bot").ledger
    store.client.delete_run(run)
    answer = CliRunner().invoke(cli, ["verify", "support-bot", "--all", "--json"])
    assert isinstance(answer.exception, Refused)
    [problem] = answer.exception.problems
    assert problem.endswith(f"mlflow runs restore --run-id {run}")
    store.client.restore_run(run)
    assert CliRunner().invoke(cli, ["verify", "support-bot", "--all", "--json"]).exit_code == 0


def test_an_experiment_in_mlflows_bin_is_told_with_the_command_that_brings_it_back(
    store: Store, tmp_path: Path
) -> None:
    version = make_version(store, tmp_path / "one")
    histories, trainings = (store.client.get_experiment_by_name(name) for name in (LEDGERS, "loradock"))
    store.client.delete_experiment(histories.experiment_id)
    command = f"mlflow experiments restore --experiment-id {histories.experiment_id}"
    with pytest.raises(Refused, match="deleted in MLflow") as raised:
        promotion.promote(store, version.ref, "production", actor="ann")
    assert raised.value.hint.endswith(command)
    # A run that was brought back alone can be written to, and goes with its experiment.
    store.client.restore_run(store.family("support-bot").ledger)
    answer = CliRunner().invoke(cli, ["verify", "support-bot", "--all", "--json"])
    assert isinstance(answer.exception, Refused)
    assert [problem.endswith(command) for problem in answer.exception.problems] == [True]
    with pytest.raises(Refused) as raised:
        store.create_family("another")
    assert raised.value.hint.endswith(command)
    store.client.restore_experiment(histories.experiment_id)
    promotion.promote(store, version.ref, "production", actor="ann")
    assert CliRunner().invoke(cli, ["verify", "support-bot", "--all", "--json"]).exit_code == 0
    store.client.delete_experiment(trainings.experiment_id)
    with pytest.raises(Refused) as raised, store.run("import", {}):
        pass
    assert raised.value.hint.endswith(f"--experiment-id {trainings.experiment_id}")


def test_verifying_all_versions_that_are_whole(store: Store, tmp_path: Path) -> None:
    make_version(store, tmp_path / "a")
    answer = CliRunner().invoke(cli, ["verify", "support-bot", "--all", "--json"], catch_exceptions=False)
    assert (answer.exit_code, json.loads(answer.stdout)[0]["faults"]) == (0, [])
    assert isinstance(CliRunner().invoke(cli, ["verify", "nobody", "--all"]).exception, NotFound)


def test_a_source_that_is_neither_a_directory_nor_of_the_hub(home: Path) -> None:
    answer = CliRunner().invoke(cli, ["import", "./nothing", "--name", "support-bot", "--base", "x/y"])
    assert isinstance(answer.exception, NotFound)
    assert "there is no directory ./nothing" in str(answer.exception)


def test_the_commands_of_the_documentation_are_commands() -> None:
    text = (Path(__file__).parents[2] / "docs" / "import.md").read_text(encoding="utf-8")
    lines = [line for line in re.findall(r"(?:`|\$ )loradock ([^`\n]+)", text) if " " in line]
    assert len(lines) > 8
    for line in lines:
        verb, *words = line.partition("#")[0].split()
        command = cli.get_command(click.Context(cli), verb)
        assert command
        command.make_context(verb, words)
