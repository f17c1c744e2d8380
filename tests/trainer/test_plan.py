"""The plan: what a training needs, whether it fits, and what to change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from trl.kernels import chunked_logprob
from trl.trainer import utils

from loradock.cli.plan import plan as command
from loradock.registry.base import config_of
from loradock.registry.errors import BadInput, NotFound, Unreachable
from loradock.registry.machine import GIB
from loradock.registry.settings import Settings
from loradock.trainer import activations, catalogue, gpus, memory, meta, methods, plan
from loradock.trainer.memory import Machine
from loradock.trainer.recipe import Optimizer, Quantization, Recipe
from loradock.trainer.sizes import Activations, Counts, Sizes

ROOT = Path(__file__).resolve().parent.parent.parent
BASES = ROOT / "tests" / "bases"
GPU, CPU = Machine(cuda=True, bytes_per_weight=2), Machine(cuda=False, bytes_per_weight=4)
COUNTS = Counts(
    base=1000, trainable=100, adapter=100, quantizable=800, largest=80, rows_and_columns=30, buffers=0, file=500
)


def recipe(method: Any = "lora", **training: Any) -> Recipe:
    return Recipe.model_validate(
        {"name": "x", "base": "base", "data": "rows.jsonl", "method": method, "training": training}
    )


@pytest.fixture(autouse=True)
def _nothing_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORADOCK_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def eight() -> plan.Estimator:
    return plan.Estimator(meta.config(BASES / "Llama-3.1-8B"))


def test_weights_in_each_precision() -> None:
    assert memory.weights(COUNTS, None, GPU) == 2000
    double = Quantization.model_validate({})
    assert memory.weights(COUNTS, double, GPU) == round(800 * (0.5 + 1 / 64 + 1 / 4096)) + 800
    single = Quantization.model_validate({"bnb_4bit_use_double_quant": False})
    assert memory.weights(COUNTS, single, GPU) == 800 * 0.5625 + 800
    assert memory.weights(COUNTS, Quantization.model_validate({"load_in_8bit": True}), GPU) == 800 + 800


@pytest.mark.parametrize(
    ("name", "gpu", "cpu"),
    [
        ("adamw_torch", 800, 800),
        ("adamw_bnb_8bit", 203, 203),
        ("paged_adamw_8bit", 0, 203),
        ("lion_32bit", 400, 400),
        ("adafactor", 120, 120),
        ("sgd", 0, 0),
    ],
)
def test_the_optimiser_s_state(name: str, gpu: int, cpu: int) -> None:
    assert memory.optimizer(name, COUNTS, 4, GPU) == gpu
    assert memory.optimizer(name, COUNTS, 4, CPU) == cpu


def test_every_optimiser_of_a_recipe_has_its_bytes() -> None:
    for name in typing.get_args(Optimizer):
        assert memory.optimizer(name, COUNTS, 4, CPU) >= 0


def test_the_loss_s_tiles_are_those_of_the_trainer() -> None:
    assert (memory._TOKENS, memory._COLUMNS) == (chunked_logprob.TOKEN_CHUNK_SIZE, utils._CHUNKED_LOGPROB_CHUNK_SIZE)


@pytest.mark.parametrize("method", ["lora", "ia3", catalogue.FULL])
def test_what_is_followed_on_shapes_is_what_autograd_keeps(method: str) -> None:
    config = AutoConfig.for_model(
        "llama",
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    given = recipe(method, max_length=32, per_device_train_batch_size=2)
    found = activations.follow(given, config, dtype=torch.float32)
    kept = kept_by_autograd(given, config)
    assert found.first + 3 * found.layer == pytest.approx(kept, rel=0.03)
    assert (found.like, found.boundary) == ("", 2 * 32 * 64 * 4)


def kept_by_autograd(given: Recipe, config: PretrainedConfig) -> int:
    """The bytes of what a real forward pass saves for its backward pass, each storage once, weights left out."""
    model = AutoModelForCausalLM.from_config(config)
    if given.method.type != catalogue.FULL:
        wanted = methods.configure(given.method, model)
        assert wanted is not None
        model = methods.wrap(model, wanted)
    model.train()
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    bare = getattr(model, "base_model", model)
    bare = getattr(bare, "model", bare)
    decoder = bare.model if hasattr(bare, "model") else bare
    ids = torch.zeros((2, 32), dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    return sum(storage.nbytes() for storage in saved.values())


def test_a_method_that_cannot_run_on_shapes_is_told_to_be_taken_for_lora(eight: plan.Estimator) -> None:
    assert activations.follow(recipe("boft", max_length=64), eight.config, dtype=torch.bfloat16).like == "lora"


def test_parts_of_the_peak() -> None:
    kept = Activations(first=10_000, layer=10_000, boundary=100, working=5, passing=0)
    sizes = Sizes(layers=3, hidden=4, vocabulary=8)
    given = recipe(per_device_train_batch_size=1, max_length=8)
    on = memory.memory(given, sizes, COUNTS, kept, GPU)
    assert (on.weights, on.adapter, on.gradients, on.optimizer) == (2000, 400, 400, 800)
    assert on.activations == 3 * 100 + 10_000 + 5
    assert on.allocator == round(memory.GPU_HOLES * (300 + 10_005))
    # As the last gradients come.
    assert on.needed == 2000 + 400 + 800 + memory.CONTEXT + on.allocator + 400 + 10_005
    off = memory.memory(recipe(max_length=8, gradient_checkpointing=False), sizes, COUNTS, kept, GPU)
    assert off.activations == 30_000 + 5


def test_llama_8b_fits_where_people_run_it(eight: plan.Estimator) -> None:
    low = {"type": "lora", "r": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
    given = recipe(low, per_device_train_batch_size=1)
    assert 16 * GIB < eight.needed(given, cuda=True).needed < 18 * GIB
    assert 7 * GIB < eight.needed(recipe({**low, "type": "qlora"}), cuda=True).needed < 14 * GIB
    assert eight.needed(recipe("full"), cuda=True).needed > 60 * GIB
    fits = {gpu.name: yes for gpu, yes in plan.roomy(given, eight)}
    assert (fits["T4"], fits["RTX 4090"], fits["H100"]) == (False, True, True)


def test_the_cheapest_change_is_the_least_harmful_one_that_is_enough(eight: plan.Estimator) -> None:
    found = plan.fit(recipe(), eight, 24 * GIB, cuda=True)
    assert (found.fits, found.changes) == (True, ())
    found = plan.fit(recipe(gradient_checkpointing=False), eight, 24 * GIB, cuda=True)
    assert [dict(change.lines) for change in found.changes] == [{"training.gradient_checkpointing": True}]
    found = plan.fit(recipe(per_device_train_batch_size=8, gradient_accumulation_steps=2), eight, 12 * GIB, cuda=True)
    assert [dict(change.lines) for change in found.changes] == [
        {"training.per_device_train_batch_size": 1, "training.gradient_accumulation_steps": 16},
        {"quantization.load_in_4bit": True},
    ]
    assert found.needed <= found.available < 12 * GIB


def test_every_change_is_a_recipe_that_is_read_again(eight: plan.Estimator) -> None:
    given = recipe("full", per_device_train_batch_size=4)
    for change in plan.fit(given, eight, 10 * GIB, cuda=True).changes:
        given = plan._changed(given, [change])
    assert Recipe.model_validate(given.model_dump(exclude_none=True, exclude={"training": {"max_steps"}})) is not None
    assert eight.needed(given, cuda=True).needed <= 10 * GIB * (1 - plan.RESERVE)


@pytest.mark.slow
def test_what_no_change_helps_is_shared_out(eight: plan.Estimator) -> None:
    found = plan.fit(recipe(), eight, 4 * GIB, cuda=True)
    assert (found.fits, found.changes) == (False, ())
    seventy = plan.Estimator(meta.config(BASES / "Llama-3.1-70B"))
    assert plan.fit(recipe(), seventy, 24 * GIB, cuda=True).gpus in (8, 16)


def test_advice_is_one_line(eight: plan.Estimator) -> None:
    said = plan.advice(recipe(dtype="float32", gradient_checkpointing=False), eight.config, 40 * GIB)
    assert said.startswith("set training.gradient_checkpointing: true")
    assert "\n" not in said
    assert "smaller base" in plan.advice(recipe(), eight.config, GIB)


@pytest.mark.parametrize(
    ("text", "name", "gib"),
    [
        ("RTX 4090", "RTX 4090", 24),
        ("rtx4090", "RTX 4090", 24),
        ("a100-80gb", "A100 80GB", 80),
        ("A100", "A100 40GB", 40),
        ("NVIDIA H100 PCIe", "H100", 80),
        ("24", "24 GiB", 24),
        ("24GiB", "24 GiB", 24),
        ("7.5", "7.5 GiB", 7.5),
    ],
)
def test_gpus_by_name_and_by_size(text: str, name: str, gib: float) -> None:
    assert gpus.find(text) == gpus.Gpu(name, round(gib * GIB))


def test_a_gpu_that_nobody_knows() -> None:
    with pytest.raises(BadInput, match="no GPU 'RTX 4099'") as raised:
        gpus.find("RTX 4099")
    assert "RTX 4090" in raised.value.hint
    with pytest.raises(BadInput):
        gpus.find("0")
    assert {gpu.name for gpu in gpus.KNOWN} >= set(gpus.COMMON)


def test_a_configuration_is_found_without_weights(tmp_path: Path) -> None:
    assert config_of("Llama-3.1-8B", Settings(), relative_to=BASES) == BASES / "Llama-3.1-8B"
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"holds no config\.json"):
        config_of("empty", Settings(), relative_to=tmp_path)
    with pytest.raises(NotFound):
        config_of("./nothing", Settings(), relative_to=tmp_path)
    with pytest.raises(Unreachable):
        config_of("nobody/nothing", Settings(), relative_to=tmp_path)
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "no such"}')
    with pytest.raises(BadInput, match="cannot be used"):
        meta.config(tmp_path / "empty")


def written(directory: Path, text: str) -> Path:
    rows = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (directory / "rows.jsonl").write_text(json.dumps(rows))
    (directory / "tiny.yaml").write_text(text)
    return directory / "tiny.yaml"


def test_the_verb(tmp_path: Path) -> None:
    method = "{r: 16, target_modules: [q_proj, k_proj, v_proj, o_proj]}"
    path = written(tmp_path, f"base: {BASES / 'Llama-3.1-8B'}\ndata: rows.jsonl\nmethod: {method}\n")
    shown = invoked(str(path), "--gpu", "12")
    assert "13,631,488 of 8,043,892,736 weights (0.1695%)" in shown
    assert "quantization.load_in_4bit: true" in shown
    found = json.loads(invoked(str(path), "--gpu", "RTX 4090", "--json"))
    assert (found["trainable"], found["total"], found["fits"]) == (13_631_488, 8_043_892_736, True)
    assert list(found["memory_gib"]) == ["this recipe", "full", "LoRA", "QLoRA", "IA3"]
    assert found["activations_gib"]["kept"] > 5 * found["activations_gib"]["checkpointed"]
    assert found["adapter_bytes"] == pytest.approx(4 * 13_631_488, rel=0.001)


def invoked(*arguments: str) -> str:
    from click.testing import CliRunner

    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_every_option_has_help() -> None:
    assert all(option.help for option in command.params if isinstance(option, click.Option))
    assert command.help


@pytest.mark.slow
@pytest.mark.parametrize("case", ["LoRA, checkpointing", "IA3, 8 x 128"])
def test_an_estimate_is_within_a_quarter_of_what_is_measured(case: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "plan_accuracy.py"), case],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
