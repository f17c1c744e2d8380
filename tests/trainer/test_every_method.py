"""Every method trains on a real base, and what is stored gives the same loss again when PEFT loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.trainer import catalogue
from loradock.trainer.catalogue import QUANTIZED
from tests.support.trainer.training import NF4, TRAINING, loss_of, stored, trained, written

pytestmark = [pytest.mark.slow, pytest.mark.minutes]

NAMED = {
    # method: (LoRA's rank as it is stored, what else the stored configuration says)
    "lora": (16, {"use_rslora": False, "use_dora": False}),
    "qlora": (16, {}),
    "rslora": (16, {"use_rslora": True}),
    "dora": (16, {"use_dora": True}),
    "pissa": (32, {"init_lora_weights": True}),
    "olora": (32, {"init_lora_weights": True}),
    "loftq": (16, {"init_lora_weights": True}),
    "adalora": (12, {"peft_type": "ADALORA", "target_r": 8}),
    "ia3": (0, {"peft_type": "IA3"}),
    "prefix_tuning": (0, {"peft_type": "PREFIX_TUNING"}),
    "prompt_tuning": (0, {"peft_type": "PROMPT_TUNING"}),
    "p_tuning": (0, {"peft_type": "P_TUNING"}),
}
OTHERS = sorted(set(catalogue.ENTRIES) - NAMED.keys() - {catalogue.FULL})
TOLERANCE = {"xlora": 0.5}  # PEFT does not load its mixture as it was
NEEDED: dict[str, dict[str, Any]] = {
    # what a person has to say of these methods, and a small part of the base for those that are slow on all of it
    "boft": {"target_modules": ["v_proj"]},
    "cpt": {"cpt_token_ids": [1, 2, 3, 4], "cpt_mask": [1, 1, 1, 1], "cpt_tokens_type_mask": [1, 1, 2, 4]},
    "trainable_tokens": {"token_indices": [1, 2, 3]},
}


@pytest.mark.parametrize("name", NAMED)
def test_a_method_of_the_mission(name: str, home: Path, tmp_path: Path, base_dir: Path, shallow_dir: Path) -> None:
    """Those that most people use, and one whose ranks depend on the base, on the whole of it; others on two layers."""
    base_dir = base_dir if name in ("lora", "qlora", "adalora") else shallow_dir
    quantized = {"quantization": NF4} if name in ("qlora", "loftq") else {}
    source, rows = written(tmp_path, base_dir, rows=12, method=name, **quantized)
    outcome = trained(source, rows, Settings())
    config = stored(outcome, Settings(), tmp_path / "adapter")
    facts = Store(Settings()).adapter_of(outcome.run_id)[1]
    rank, said = NAMED[name]
    assert config.items() >= said.items()
    assert facts.rank == rank
    assert facts.base.quantization == ("nf4" if quantized else "none")
    assert outcome.eval_loss < outcome.eval_loss_before
    assert loss_of(tmp_path / "adapter", source, rows, base_dir) == pytest.approx(outcome.eval_loss, abs=2e-3)


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_method_of_peft(name: str, home: Path, tmp_path: Path, shallow_dir: Path) -> None:
    settings = NEEDED.get(name, {})
    if name == "xlora":
        settings = {"adapters": {each: write_lora(tmp_path / each, shallow_dir, ord(each)) for each in "ab"}}
    source, rows = written(tmp_path, shallow_dir, method={"type": name, **settings})
    outcome = trained(source, rows, Settings())
    config = stored(outcome, Settings(), tmp_path / "adapter")
    assert config["peft_type"] == name.upper()
    assert outcome.trainable > 0
    assert outcome.loss != pytest.approx(0)
    assert outcome.eval_loss != outcome.eval_loss_before
    again = loss_of(tmp_path / "adapter", source, rows, shallow_dir)
    assert again == pytest.approx(outcome.eval_loss, abs=TOLERANCE.get(name, 2e-3))


@pytest.mark.parametrize("name", ["adaption_prompt", "cpt"])
def test_the_model_s_own_loss_is_the_same_however_a_step_is_shared_out(
    name: str, home: Path, tmp_path: Path, shallow_dir: Path
) -> None:
    losses = []
    for rows_, batches in ((4, 1), (2, 2)):
        shared = {"per_device_train_batch_size": rows_, "gradient_accumulation_steps": batches, "max_steps": 1}
        method = {"type": name, **NEEDED.get(name, {})}
        source, rows = written(tmp_path, shallow_dir, method=method, training=TRAINING | shared)
        losses.append(trained(source, rows, Settings()).loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("name", ["lora", "adalora", "prompt_tuning"])
def test_activations_that_are_computed_again_change_nothing(
    name: str, home: Path, tmp_path: Path, shallow_dir: Path
) -> None:
    losses = []
    for again in (False, True):
        training = TRAINING | {"gradient_checkpointing": again}
        outcome = trained(*written(tmp_path, shallow_dir, rows=12, method=name, training=training), Settings())
        losses.append((outcome.loss, outcome.eval_loss))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_qlora_as_its_paper_has_it(home: Path, tmp_path: Path, shallow_dir: Path) -> None:
    """NormalFloat in 4 bits, quantised twice, bfloat16; on two layers, since few CPUs multiply that fast."""
    quantization = {"bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_use_double_quant": True}
    source, rows = written(tmp_path, shallow_dir, method="qlora", quantization=quantization)
    outcome = trained(source, rows, Settings())
    stored(outcome, Settings(), tmp_path / "adapter")
    assert outcome.eval_loss < outcome.eval_loss_before
    assert loss_of(tmp_path / "adapter", source, rows, shallow_dir) == pytest.approx(outcome.eval_loss, abs=0.05)


@pytest.mark.parametrize("name", [name for name in QUANTIZED if name not in ("lora", "adalora")])
def test_the_other_types_with_layers_for_a_quantised_base(
    name: str, home: Path, tmp_path: Path, shallow_dir: Path
) -> None:
    source, rows = written(tmp_path, shallow_dir, method=name, quantization=NF4)
    outcome = trained(source, rows, Settings())
    stored(outcome, Settings(), tmp_path / "adapter")
    assert outcome.eval_loss < outcome.eval_loss_before
    assert loss_of(tmp_path / "adapter", source, rows, shallow_dir) == pytest.approx(outcome.eval_loss, abs=2e-3)


def test_full_fine_tuning_is_measured_and_leaves_no_adapter(home: Path, tmp_path: Path, shallow_dir: Path) -> None:
    source, rows = written(tmp_path, shallow_dir, method="full")
    outcome = trained(source, rows, Settings())
    assert outcome.trainable == sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(shallow_dir).parameters())
    assert (outcome.digest, outcome.eval_loss < outcome.eval_loss_before) == ("", True)
    run = Store(Settings()).client.get_run(outcome.run_id)
    assert run.info.status == "FINISHED"
    assert "peft.type" not in run.data.params


def write_lora(directory: Path, base_dir: Path, seed: int) -> str:
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base_dir), config).save_pretrained(directory)
    return str(directory)
