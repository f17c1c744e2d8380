"""What a run prints and logs of a training is what an independent count of it comes to."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from loradock.registry import card, versions
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.trainer.run import Outcome
from tests.support.trainer.training import TRAINING, loss_of, stored, trained, written

pytestmark = pytest.mark.slow

ODD = {r"layers\.0\.//.*|.*\.layers\.0\..*q_proj": 64, "|".join(["q_proj"] * 50): 2}
"""Keys that no param of MLflow could have as a name."""


@dataclass(frozen=True)
class Done:
    outcome: Outcome
    settings: Settings
    lengths: list[int]
    """Tokens of each row that is trained on, by the tokenizer alone."""
    logged: dict[str, float]
    params: dict[str, str]
    adapter: Path
    loss: float
    """Of the stored adapter, by plain PEFT and torch."""


def done(directory: Path, base: Path, empty_store: Path, training: dict[str, Any], method: dict[str, Any]) -> Done:
    settings = Settings(home=directory / "home")
    settings.home.mkdir()
    shutil.copy(empty_store, settings.home / "mlflow.db")
    given = {key: value for key, value in TRAINING.items() if key != "max_steps"} | training
    source, rows = written(directory, base, training=given, method=method)
    outcome = trained(source, rows, settings)
    stored(outcome, settings, directory / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(base)
    lengths = [
        len(tokenizer.apply_chat_template([message.plain() for message in row.messages], return_dict=True)["input_ids"])
        for row in rows.split(0.3)[0]
    ]
    run = Store(settings).client.get_run(outcome.run_id).data
    loss = loss_of(directory / "adapter", source, rows, base)
    return Done(outcome, settings, lengths, run.metrics, run.params, directory / "adapter", loss)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory, shallow_dir: Path, empty_store: Path) -> Done:
    """One pass of fewer steps than lie between two reports, on the head too, with patterns whose order counts."""
    training = {"num_train_epochs": 1, "per_device_train_batch_size": 5, "logging_steps": 50}
    method = {"r": 4, "target_modules": ["q_proj", "lm_head"], "alpha_pattern": ODD}
    return done(tmp_path_factory.mktemp("short"), shallow_dir, empty_store, training, method)


def test_every_token_of_every_step_counts(short: Done) -> None:
    assert short.outcome.steps == -(-len(short.lengths) // 5) > 1
    assert short.outcome.tokens == sum(short.lengths) == short.logged["tokens"]
    assert short.outcome.tokens_per_second > short.outcome.tokens / short.outcome.seconds


def test_the_last_report_is_that_of_the_last_step(short: Done) -> None:
    history = Store(short.settings).client.get_metric_history(short.outcome.run_id, "loss")
    assert [point.step for point in history] == [1, short.outcome.steps]
    assert short.outcome.loss == pytest.approx(history[-1].value)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_the_trained_weights_are_those_of_the_file(short: Done, shallow_dir: Path) -> None:
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(shallow_dir), short.adapter, is_trainable=True
    )
    assert short.outcome.trainable == model.get_nb_trainable_parameters()[0] == int(short.params["trainable"])


def test_the_stored_adapter_has_the_loss_that_is_told(short: Done) -> None:
    assert short.loss == pytest.approx(short.outcome.eval_loss, abs=1e-4)
    assert short.outcome.eval_loss != pytest.approx(short.outcome.eval_loss_before, abs=1e-4)


def test_keys_of_the_users_own_are_values_of_a_param(short: Done) -> None:
    assert json.loads(short.params["recipe.method.alpha_pattern"]) == ODD
    assert "layers.1.self_attn.q_proj" in short.params["peft.alpha_pattern"]


def test_packed_rows_count_whole(tmp_path: Path, shallow_dir: Path, empty_store: Path) -> None:
    training = {"num_train_epochs": 1, "per_device_train_batch_size": 1, "packing": True, "max_length": 256}
    found = done(tmp_path, shallow_dir, empty_store, training, {"r": 4, "target_modules": ["q_proj"]})
    assert found.outcome.tokens == sum(found.lengths)


def test_a_card_has_the_loss_of_the_weights_that_were_kept(
    tmp_path: Path, shallow_dir: Path, empty_store: Path
) -> None:
    training = {"max_steps": 4, "eval_steps": 1, "save_steps": 1, "learning_rate": 0.2}
    method = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
    found = done(tmp_path, shallow_dir, empty_store, training, method)
    assert found.outcome.kept_step < 4
    assert found.logged["eval_loss"] != pytest.approx(found.outcome.eval_loss, abs=1e-3)
    assert found.loss == pytest.approx(found.outcome.eval_loss, abs=1e-3)
    store = Store(found.settings)
    version = versions.register(store, found.outcome.run_id, "support-bot")
    told = card.of_version(version, store.metrics_of(version.facts.run_id))
    assert f"held-out loss {found.outcome.eval_loss:.3f}" in told
