"""A training leaves one MLflow run that says all of it and holds the adapter, or one that says why it does not."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import trl
from click.testing import CliRunner
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from loradock.cli.train import train
from loradock.registry import artifact
from loradock.registry.errors import BadInput, LoradockError
from loradock.registry.records import TextSettings
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.registry.text import settings_of
from loradock.trainer import data, recipe_file, room, run
from loradock.trainer.data import Rows
from loradock.trainer.recipe_file import RecipeFile
from loradock.trainer.rows import Row
from tests.support.trainer.training import write_rows

pytestmark = [pytest.mark.slow, pytest.mark.story]

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
RECIPE = """\
# a comment that is kept
name: tiny
base: {base}
data: {{path: rows.jsonl, heldout: 0.3}}
samples: 2
method: {{r: 4, target_modules: [q_proj, v_proj]}}
training: {{max_steps: 3, learning_rate: 1e-3, per_device_train_batch_size: 2, logging_steps: 1, eval_steps: 2}}
"""


def written(directory: Path, shallow_dir: Path, *changes: tuple[str, str]) -> tuple[RecipeFile, Rows]:
    write_rows(directory, 12)
    text = RECIPE.format(base=shallow_dir)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (directory / "recipe.yaml").write_text(text)
    source = recipe_file.load(directory / "recipe.yaml")
    return source, data.load(source.recipe.data, directory)


@dataclass(frozen=True)
class Trained:
    source: RecipeFile
    rows: Rows
    settings: Settings
    store: Store
    outcome: run.Outcome
    said: list[str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shallow_dir: Path, empty_store: Path) -> Trained:
    directory = tmp_path_factory.mktemp("trained")
    settings = Settings(home=directory / "home")
    settings.home.mkdir()
    shutil.copy(empty_store, settings.home / "mlflow.db")
    source, rows = written(directory, shallow_dir)
    said: list[str] = []
    outcome = run.train(source, rows, settings, said.append)
    return Trained(source, rows, settings, Store(settings), outcome, said)


def runs(settings: Settings) -> list[tuple[str, str, dict[str, str]]]:
    client = Store(settings).client
    experiment = client.get_experiment_by_name(settings.experiment)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    return [(each.info.run_id, each.info.status, each.data.tags) for each in found]


def test_the_run_is_finished_and_keeps_the_recipe_verbatim(trained: Trained) -> None:
    found = trained.store.client.get_run(trained.outcome.run_id)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "tiny")
    path = trained.store.client.download_artifacts(trained.outcome.run_id, "recipe.yaml")
    assert Path(path).read_text() == trained.source.text


def test_it_says_what_was_trained_on_what(trained: Trained, shallow_dir: Path) -> None:
    params = trained.store.client.get_run(trained.outcome.run_id).data.params
    assert params.items() >= trained_parameters(trained).items()
    assert params["base.id"] == shallow_dir.name
    assert len(params["base.config_digest"]) == len(params["base.weights_digest"]) == 64
    assert params["environment.torch"][0].isdigit()
    inputs = trained.store.client.get_run(trained.outcome.run_id).inputs.dataset_inputs
    assert [each.dataset.name for each in inputs] == ["rows.jsonl"]
    assert trained.rows.digest.startswith(inputs[0].dataset.digest)


def trained_parameters(trained: Trained) -> dict[str, str]:
    train, heldout = trained.rows.split(0.3)
    return {
        "recipe.method.r": "4",
        "peft.r": "4",
        "peft.lora_alpha": "8",
        "recipe.method.target_modules": "q_proj, v_proj",
        "recipe.training.learning_rate": "0.001",
        "recipe.seed": "42",
        "data.file": "rows.jsonl",
        "data.digest": trained.rows.digest,
        "data.rows": "12",
        "data.train.examples": str(len(train)),
        "data.heldout.examples": str(len(heldout)),
        "data.train.left_out": "0",
    }


def test_it_holds_the_curves_step_by_step(trained: Trained) -> None:
    client, run_id = trained.store.client, trained.outcome.run_id
    steps = {
        name: [point.step for point in client.get_metric_history(run_id, name)]
        for name in ("loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_second")
    }
    assert steps.pop("eval_loss") == [0, 2, 3]
    assert all(found == [1, 2, 3] for found in steps.values())
    assert all(point.value > 0 for point in client.get_metric_history(run_id, "tokens_per_second"))
    assert trained.outcome.eval_loss < trained.outcome.eval_loss_before
    for name in ("loss.png", "learning_rate.png", "tokens.png"):
        assert Path(client.download_artifacts(run_id, name)).read_bytes().startswith(b"\x89PNG")


def test_it_shows_what_the_model_said_before_and_after(trained: Trained) -> None:
    path = trained.store.client.download_artifacts(trained.outcome.run_id, "samples.json")
    table = json.loads(Path(path).read_text())
    assert table["columns"] == ["prompt", "in the data", "before", "after"]
    assert 1 <= len(table["data"]) <= 4
    for prompt, expected, *_ in table["data"]:
        assert "What is" in prompt
        assert "Arr" in expected


def test_without_samples_its_run_has_no_text_of_a_row(home: Path, shallow_dir: Path, tmp_path: Path) -> None:
    source, _ = written(tmp_path, shallow_dir)
    done = CliRunner().invoke(train, [str(source.path), "--no-samples", "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    client, run_id = Store(Settings()).client, json.loads(done.stdout)["run_id"]
    kept = Path(client.download_artifacts(run_id, "", str(tmp_path)))
    names = {item.path for item in client.list_artifacts(run_id)}
    assert "loss.png" in names
    assert "samples.json" not in names
    run_ = client.get_run(run_id)
    texts = [(kept / name).read_text() for name in names if not name.endswith(".png")]
    assert not any("What is" in text for text in [*texts, json.dumps([run_.data.params, run_.data.tags])])


def test_it_leaves_no_checkpoint_behind(trained: Trained) -> None:
    assert list(trained.settings.trainings.iterdir()) == []


def test_it_holds_an_adapter_that_the_registry_can_take(trained: Trained, tmp_path: Path, shallow_dir: Path) -> None:
    source, facts = trained.store.adapter_of(trained.outcome.run_id)
    trained.store.download(source, tmp_path, what="the adapter")
    manifest = artifact.verify(tmp_path, trained.outcome.digest, what="the adapter")
    assert [entry.path for entry in manifest.files] == ["adapter_config.json", "adapter_model.safetensors"]
    assert (facts.method, facts.rank, facts.targets) == ("lora", 4, ("q_proj", "v_proj"))
    assert (facts.digest, facts.data_digest) == (trained.outcome.digest, trained.rows.digest)
    assert facts.text == settings_of(shallow_dir) != TextSettings()
    params = trained.store.client.get_run(trained.outcome.run_id).data.params
    assert params["base.template"] == facts.text.template
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == shallow_dir.name
    assert (config["r"], config["lora_alpha"]) == (4, 8)


def test_it_names_no_user_and_no_directory_of_this_machine(trained: Trained) -> None:
    found = trained.store.client.get_run(trained.outcome.run_id)
    written_down = json.dumps([found.data.params, found.data.tags])
    assert str(trained.source.directory) not in written_down
    assert str(trained.settings.home) not in written_down
    assert "mlflow.user" not in found.data.tags
    assert os.uname().nodename not in written_down


def test_the_same_recipe_gives_the_same_adapter(trained: Trained) -> None:
    again = run.train(trained.source, trained.rows, trained.settings, lambda _: None)
    assert again.run_id != trained.outcome.run_id
    assert again.digest == trained.outcome.digest


def test_another_seed_gives_another_adapter(trained: Trained, tmp_path: Path, shallow_dir: Path) -> None:
    changed = written(tmp_path, shallow_dir, ("data:", "seed: 7\ndata:"), ("max_steps: 3", "max_steps: 1"))
    unchanged = written(tmp_path, shallow_dir, ("max_steps: 3", "max_steps: 1"))
    digests = {run.train(*each, trained.settings, lambda _: None).digest for each in (changed, unchanged)}
    assert len(digests) == 2


def test_a_target_that_does_not_exist_leaves_no_run(home: Path, tmp_path: Path, shallow_dir: Path) -> None:
    source, rows = written(tmp_path, shallow_dir, ("v_proj", "v_prj"))
    with pytest.raises(BadInput) as raised:
        run.train(source, rows, Settings(), lambda _: None)
    assert raised.value.problems == (
        "recipe.yaml:6: method.target_modules[1]: 'v_prj': no module of this base ends so; did you mean v_proj?",
    )
    assert Store(Settings()).client.get_experiment_by_name(Settings().experiment) is None


def with_template(directory: Path, base: Path, template: str) -> Path:
    """The base with another chat template."""
    other = directory / "other-base"
    shutil.copytree(base, other)
    (other / "chat_template.jinja").write_text(template)
    return other


def test_rows_that_the_template_refuses_are_named_before_anything_is_loaded(
    home: Path, tmp_path: Path, shallow_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses = "{% if '7' in messages[0]['content'] %}{{ raise_exception('no sevens') }}{% endif %}Arr"
    source, rows = written(tmp_path, with_template(tmp_path, shallow_dir, refuses))
    monkeypatch.delattr(run.base, "load")
    with pytest.raises(BadInput) as raised:
        run.train(source, rows, Settings(), lambda _: None)
    assert raised.value.problems == ("rows.jsonl:8: no sevens",)
    assert Store(Settings()).client.get_experiment_by_name(Settings().experiment) is None


def test_an_activated_lora_that_no_row_invokes_leaves_no_run(home: Path, tmp_path: Path, shallow_dir: Path) -> None:
    source, rows = written(tmp_path, shallow_dir, ("r: 4", "r: 4, alora_invocation_tokens: [1, 1, 1]"))
    with pytest.raises(BadInput) as raised:
        run.train(source, rows, Settings(), lambda _: None)
    assert raised.value.problems[0].startswith(
        "recipe.yaml:6: method.alora_invocation_tokens: in every row no answer follows [1, 1, 1]"
    )
    assert Store(Settings()).client.get_experiment_by_name(Settings().experiment) is None


def test_a_block_that_the_template_adds_is_told_before_training_and_out_of_its_loss(
    home: Path, tmp_path: Path, shallow_dir: Path
) -> None:
    block = "<think>\n\n</think>\n\n"
    base = with_template(tmp_path, shallow_dir, (TEMPLATES / "qwen3.jinja").read_text())
    source, rows = written(tmp_path, base, ("max_steps: 3", "max_steps: 1, dtype: float32"))
    said: list[str] = []
    outcome = run.train(source, rows, Settings(), said.append)
    heldout = rows.split(0.3)[1]
    told = next(index for index, words in enumerate(said) if f"puts {block!r} before the answer" in words)
    assert said[told].startswith("warning: 12 examples (rows.jsonl:")
    assert told < next(index for index, words in enumerate(said) if "weights are trained" in words)
    params = Store(Settings()).client.get_run(outcome.run_id).data.params
    assert params["data.heldout.added"] == str(len(heldout))
    assert outcome.eval_loss_before == pytest.approx(loss_after(block, base, heldout), rel=1e-4)


def loss_after(block: str, base: Path, rows: Sequence[Row]) -> float:
    """The base's loss on what follows the block, by transformers alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    total = count = 0.0
    for row in rows:
        text = tokenizer.apply_chat_template([turn.plain() for turn in row.messages], tokenize=False)
        written = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
        behind = written.offset_mapping[0, 1:, 0] >= text.index(block) + len(block)
        with torch.inference_mode():
            losses = torch.log_softmax(model(written.input_ids).logits[0, :-1], -1)
        total -= float(losses.gather(1, written.input_ids[0, 1:, None])[behind].sum())
        count += int(behind.sum())
    return total / count


def interrupt(_: str) -> None:
    raise KeyboardInterrupt


def terminate(_: str) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("stop", "raised"), [(interrupt, KeyboardInterrupt), (terminate, SystemExit)])
def test_an_interrupted_training_is_killed_and_says_so(
    home: Path, tmp_path: Path, shallow_dir: Path, stop: Callable[[str], None], raised: type[BaseException]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    source, rows = written(tmp_path, shallow_dir)
    with pytest.raises(raised):
        run.train(source, rows, Settings(), stop)
    [(_, status, tags)] = runs(Settings())
    assert (status, tags["loradock.reason"]) == ("KILLED", "interrupted")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError('Io("... (os error 28)")')],
)
def test_a_full_disk_is_told(tmp_path: Path, shallow_dir: Path, error: Exception) -> None:
    source, _ = written(tmp_path, shallow_dir)
    told = run._machine_told(source.recipe, shallow_dir, 2**30)
    with pytest.raises(LoradockError, match="a file could not be written") as raised, told:
        raise error
    assert "--resume" in raised.value.hint


@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("no"), IndexError("no")])
def test_what_a_library_raises_that_nobody_foresaw_is_told_in_a_line(
    error: Exception, tmp_path: Path, shallow_dir: Path
) -> None:
    source, _ = written(tmp_path, shallow_dir)
    told = run._machine_told(source.recipe, shallow_dir, 2**30)
    with pytest.raises(LoradockError, match=rf"the training broke off: {type(error).__name__}: no") as raised, told:
        raise error
    assert "--resume" in raised.value.hint
    assert raised.value.__cause__ is error


def test_rows_longer_than_the_base_reads_are_named_before_anything_is_loaded(
    home: Path, tmp_path: Path, shallow_dir: Path
) -> None:
    base = shutil.copytree(shallow_dir, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8}))
    source, rows = written(tmp_path, base)
    with pytest.raises(BadInput) as raised:
        run.train(source, rows, Settings(), lambda _: None)
    (problem,) = raised.value.problems
    assert re.search(r":\d+: training.max_length: \d+ examples \(rows.jsonl:.* more than the 8 tokens", problem)


def test_memory_that_runs_out_is_told_with_the_plans_advice(tmp_path: Path, shallow_dir: Path) -> None:
    source, _ = written(tmp_path, shallow_dir)
    told = run._machine_told(source.recipe, shallow_dir, 2**30)
    with pytest.raises(LoradockError, match="memory ran out") as raised, told:
        torch.empty(2**48)
    assert "set training." in raised.value.hint


def test_a_training_that_needs_more_than_there_is_is_warned_of(tmp_path: Path, shallow_dir: Path) -> None:
    source, _ = written(tmp_path, shallow_dir)
    assert room.lacking(source.recipe, shallow_dir, 300, 64 * 2**30) == ""
    words = room.lacking(source.recipe, shallow_dir, 300, 2**30)
    assert re.match(r"this needs about \d+\.\d GiB, and 1\.0 GiB are free: set training\.", words)


def test_nothing_fits(home: Path, tmp_path: Path, shallow_dir: Path) -> None:
    source, rows = written(tmp_path, shallow_dir, ("max_steps: 3", "max_steps: 3, max_length: 8"))
    with pytest.raises(BadInput, match="fits into 8 tokens"):
        run.train(source, rows, Settings(), lambda _: None)
