"""The directories that other trainers write, with the names that they give."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from loradock.registry.artifact import CONFIG, WEIGHTS
from loradock.registry.errors import BadInput, NotFound
from loradock.registry.layouts import checkpoints, find
from tests.support.adapters import write_adapter

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def adapter(directory: Path, *beside: str) -> Path:
    """An adapter as trainers leave it: no manifest, and other files beside it."""
    write_adapter(directory)
    (directory / "manifest.json").unlink()
    for name in beside:
        (directory / name).write_text("{}")
    return directory


def trained(directory: Path, steps: tuple[int, ...], **state: Any) -> Path:
    """A Trainer's directory with checkpoints alone."""
    for step in steps:
        path = adapter(directory / f"checkpoint-{step}", "optimizer.pt", "rng_state.pth", "scheduler.pt")
        (path / "trainer_state.json").write_text(json.dumps({"global_step": step, **state}))
    return directory


def evaluated(**losses: float) -> list[dict[str, float]]:
    return [{"step": int(step[1:]), "eval_loss": loss} for step, loss in losses.items()]


def test_plain_peft(tmp_path: Path) -> None:
    found = find(adapter(tmp_path / "out", "README.md"))
    assert (found.directory, found.weights.name, found.below, found.pickled) == (tmp_path / "out", WEIGHTS, "", False)
    assert found.aside == ("README.md",)


def test_axolotl(tmp_path: Path) -> None:
    out = adapter(tmp_path / "out", "README.md", "config.json", "debug.log", *TOKENIZER)
    trained(out, (20, 40))
    (out / "merged").mkdir()
    (out / "merged" / "model.safetensors").write_bytes(b"")
    found = find(out)
    assert (found.directory, found.below) == (out, "")
    assert {"checkpoint-20/", "checkpoint-40/", "merged/", "tokenizer.json", "README.md"} <= set(found.aside)
    assert find(out, "20").directory == out / "checkpoint-20"


def test_llama_factory(tmp_path: Path) -> None:
    out = adapter(tmp_path / "sft", "all_results.json", "trainer_log.jsonl", "training_loss.png", *TOKENIZER)
    trained(out, (500,))
    (out / "trainer_state.json").write_text(
        json.dumps({"best_model_checkpoint": "saves/sft/checkpoint-500", "log_history": evaluated(s500=0.8)})
    )
    assert find(out).directory == out
    found = find(out, "best")
    assert (found.below, found.aside[-1]) == ("checkpoint-500", "training_loss.png")
    assert "checkpoint-500/optimizer.pt" in found.aside


def test_checkpoints_alone_are_listed_and_one_is_chosen(tmp_path: Path) -> None:
    history = evaluated(s5=0.9, s10=0.5, s15=0.7)
    out = trained(
        tmp_path / "out", (5, 10, 15), best_model_checkpoint="/elsewhere/out/checkpoint-10", log_history=history
    )
    with pytest.raises(BadInput, match="holds no adapter itself") as caught:
        find(out)
    assert caught.value.problems == (
        "checkpoint-5: step 5, eval_loss 0.9",
        "checkpoint-10: step 10, eval_loss 0.5, the best",
        "checkpoint-15: step 15, eval_loss 0.7",
    )
    assert "--checkpoint N, best or last" in caught.value.hint
    assert [find(out, word).below for word in ("5", "best", "last")] == [
        "checkpoint-5",
        "checkpoint-10",
        "checkpoint-15",
    ]


def test_the_best_is_the_lowest_loss_where_none_is_noted(tmp_path: Path) -> None:
    out = trained(tmp_path / "a", (5, 10), log_history=evaluated(s5=0.4, s10=float("nan"), s99=0.1))
    assert find(out, "best").below == "checkpoint-5"
    bare = trained(tmp_path / "b", (5, 10))
    with pytest.raises(NotFound, match="no best checkpoint") as caught:
        find(bare, "best")
    assert caught.value.hint == "it holds checkpoint-5: step 5, checkpoint-10: step 10"


@pytest.mark.parametrize("state", ["", "[]", "{", '{"log_history": 3}', '{"best_model_checkpoint": "../../etc"}'])
def test_a_state_that_says_nothing_names_no_best(tmp_path: Path, state: str) -> None:
    out = trained(tmp_path / "out", (5,))
    (out / "checkpoint-5" / "trainer_state.json").write_text(state)
    assert [step.best for step in checkpoints(out)] == [False]


@pytest.mark.parametrize(("wanted", "error"), [("6", NotFound), ("newest", BadInput), ("../5", BadInput)])
def test_a_checkpoint_that_is_not_there(tmp_path: Path, wanted: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=wanted):
        find(trained(tmp_path / "out", (5,)), wanted)


def test_what_was_best_and_is_deleted_is_not_there(tmp_path: Path) -> None:
    out = trained(tmp_path / "out", (10,), best_model_checkpoint="out/checkpoint-5")
    with pytest.raises(NotFound):
        find(out, "best")


def test_an_adapter_in_a_directory_of_its_name(tmp_path: Path) -> None:
    adapter(tmp_path / "out" / "policy")
    assert find(tmp_path / "out").below == "policy"
    adapter(tmp_path / "out" / "reference")
    with pytest.raises(BadInput) as caught:
        find(tmp_path / "out")
    assert caught.value.problems == ("policy: an adapter of that name", "reference: an adapter of that name")
    assert str(tmp_path / "out" / "policy") in caught.value.hint
    assert find(tmp_path / "out" / "reference").below == ""


def test_a_checkpoint_with_an_adapter_in_a_directory_of_its_name(tmp_path: Path) -> None:
    adapter(tmp_path / "out" / "checkpoint-5" / "policy", "README.md")
    found = find(tmp_path / "out", "last")
    assert (found.below, found.aside) == ("checkpoint-5/policy", ("checkpoint-5/policy/README.md",))


def test_pickles_are_found_and_safetensors_come_first(tmp_path: Path) -> None:
    old = adapter(tmp_path / "old")
    shutil.copy(old / WEIGHTS, old / "adapter_model.bin")
    assert not find(old).pickled
    (old / WEIGHTS).unlink()
    assert find(old).pickled


def test_ms_swift_gives_each_training_a_directory_of_its_own(tmp_path: Path) -> None:
    trained(tmp_path / "output" / "v0-20261130-101500", (5, 10), log_history=evaluated(s5=0.5, s10=0.7))
    found = find(tmp_path / "output", "best")
    assert found.below == "v0-20261130-101500/checkpoint-5"
    assert "v0-20261130-101500/checkpoint-5/optimizer.pt" in found.aside
    with pytest.raises(BadInput) as caught:
        find(tmp_path / "output")
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["checkpoint-5", "checkpoint-10"]
    second = trained(tmp_path / "output" / "v1-20261130-113000", (5,))
    with pytest.raises(BadInput) as caught:
        find(tmp_path / "output", "last")
    assert caught.value.problems == (
        "v0-20261130-101500: a training with checkpoints",
        "v1-20261130-113000: a training with checkpoints",
    )
    assert find(second, "last").below == "checkpoint-5"


@pytest.mark.parametrize(
    ("files", "title"),
    [
        ((CONFIG, "adapters.safetensors"), "an MLX adapter, adapters.safetensors"),
        ((CONFIG, "0000100_adapters.safetensors"), "an MLX adapter, 0000100_adapters.safetensors"),
        (("lit_model.pth.lora", "hyperparameters.yaml"), "a LitGPT adapter"),
        ((CONFIG, "adapter.safetensors", "head_config.json"), "an AdapterHub adapter"),
        ((CONFIG, "pytorch_adapter.bin"), "an AdapterHub adapter"),
        (("bot.gguf",), "a GGUF file, bot.gguf"),
        (("bot.onnx_adapter",), "an ONNX adapter"),
        (("pytorch_lora_weights.safetensors",), "a diffusers LoRA"),
        ((CONFIG, "adapter_model-00001-of-00002.safetensors"), "an adapter in shards"),
    ],
)
def test_the_format_of_another_tool_is_named(tmp_path: Path, files: tuple[str, ...], title: str) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(BadInput, match=title) as caught:
        find(tmp_path)
    assert caught.value.hint


def test_a_file_in_a_directorys_stead(tmp_path: Path) -> None:
    for name, said in (("bot.gguf", "bot.gguf is a GGUF file"), (WEIGHTS, f"{WEIGHTS} is a file")):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(BadInput, match=said):
            find(tmp_path / name)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((), f"no {CONFIG}"),
        ((CONFIG,), f"no {WEIGHTS}"),
        ((WEIGHTS,), f"no {CONFIG}"),
        (("config.json", "model.safetensors"), "whole model"),
    ],
)
def test_what_holds_no_adapter(tmp_path: Path, files: tuple[str, ...], said: str) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(BadInput, match=said) as caught:
        find(tmp_path)
    assert caught.value.hint
    with pytest.raises(NotFound, match="no directory"):
        find(tmp_path / "nothing")


@pytest.mark.slow
def test_what_peft_writes_of_a_model_with_several_adapters(shallow_dir: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(shallow_dir), settings, adapter_name="calm")
    model.save_pretrained(tmp_path / "one")
    model.add_adapter("loud", settings)
    model.save_pretrained(tmp_path / "two")
    assert (find(tmp_path / "one").below, find(tmp_path / "one").weights.name) == ("calm", WEIGHTS)
    with pytest.raises(BadInput) as caught:
        find(tmp_path / "two")
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["calm", "loud"]
