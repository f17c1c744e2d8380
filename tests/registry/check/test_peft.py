"""The doctor on what PEFT itself writes, for models of several architectures, and on what it then mends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from loradock.registry.artifact import CONFIG, WEIGHTS, read_header
from loradock.registry.check import examine, read_shapes
from loradock.registry.check.mend import mend
from loradock.registry.check.vllm import NO_LORA

pytestmark = pytest.mark.slow

WIDTHS = {"llama": 32, "gpt2": 40, "falcon": 48, "bloom": 56, "qwen2": 64, "gemma": 72, "phi3": 80, "qwen3": 88}


def make_model(kind: str) -> Any:
    """A small model with random weights; each kind has a width of its own."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    width = WIDTHS[kind]
    sizes = {
        "hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 2 * width,
        "vocab_size": 2 * width, "head_dim": width // 4, "num_key_value_heads": 2, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    if kind in ("gpt2", "falcon", "bloom"):
        sizes = {key: sizes[key] for key in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
        names = ("n_embd", "n_layer", "n_head") if kind == "gpt2" else ("hidden_size", "num_hidden_layers", "n_head")
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads") if kind == "falcon" else names
        sizes |= dict(zip(names, (width, 2, 4), strict=True))
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for kind in WIDTHS:
        make_model(kind).save_pretrained(root / kind)
    return {kind: root / kind for kind in WIDTHS}


def save_adapter(model: Any, directory: Path, **settings: Any) -> Path:
    """An adapter with weights other than zero, as PEFT saves it."""
    import torch
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(
        model, LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings)
    )
    for name, weight in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.02)
    wrapped.save_pretrained(directory, save_embedding_layers=False)
    return directory


@pytest.mark.parametrize("kind", WIDTHS)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_what_peft_writes_has_nothing_on_its_own_base_and_fits_no_other(
    kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    adapter = save_adapter(make_model(kind), tmp_path / "adapter")
    shapes = read_shapes(bases[kind])
    codes = {finding.code for finding in examine(adapter, base=shapes).findings}
    assert codes == ({"base-takes-no-lora"} if shapes.architecture in NO_LORA else set())
    for other, base in bases.items():
        found = examine(adapter, base=read_shapes(base))
        assert (other == kind) == ("wrong-base" not in {finding.code for finding in found.findings}), other


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": r".*\.(q|k)_proj", "use_rslora": True},
        {"rank_pattern": {"q_proj": 2, r"layers\.0\.mlp\.up_proj": 6}, "alpha_pattern": {"v_proj": 3}},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "gaussian"},
        {"layers_to_transform": [1], "target_modules": ["q_proj", "v_proj"]},
        {"exclude_modules": ["down_proj"]},
    ],
    ids=str,
)
def test_what_peft_writes_by_other_settings_is_servable(
    settings: dict[str, Any], bases: dict[str, Path], tmp_path: Path
) -> None:
    found = examine(save_adapter(make_model("llama"), tmp_path, **settings), base=read_shapes(bases["llama"]))
    assert found.servable, found
    assert {finding.code for finding in found.findings} <= {"uneven-layers"}


@pytest.mark.parametrize("kind", ["gpt2", "bloom", "llama"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_a_base_that_was_saved_without_its_head_has_the_same_modules(kind: str, tmp_path: Path) -> None:
    model = make_model(kind)
    (model.model if kind == "llama" else model.transformer).save_pretrained(tmp_path / "body")
    model.config.save_pretrained(tmp_path / "body")
    found = examine(save_adapter(model, tmp_path / "adapter"), base=read_shapes(tmp_path / "body"))
    assert {finding.code for finding in found.findings} <= {"base-takes-no-lora"}


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # PEFT takes biases for weights that a shard left flat
@pytest.mark.parametrize("settings", [{"use_dora": True}, {"bias": "lora_only"}, {"lora_bias": True}], ids=str)
def test_what_peft_writes_and_vllm_does_not_serve_is_known_by_what_it_holds(
    settings: dict[str, Any], bases: dict[str, Path], tmp_path: Path
) -> None:
    adapter = save_adapter(make_model("qwen2"), tmp_path, target_modules=["q_proj", "v_proj"], **settings)
    found = examine(adapter, base=read_shapes(bases["qwen2"]))
    assert found.verdict == ("servable after convert" if "use_dora" in settings else "servable after merge"), found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_the_copies_of_embeddings_that_peft_keeps_are_held_against_the_base(
    dtype: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    wanted = ["q_proj", "embed_tokens", "lm_head"]
    model = get_peft_model(make_model("llama"), LoraConfig(r=4, target_modules=wanted, init_lora_weights=False))
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path)
    shapes = read_shapes(bases["llama"])
    found = examine(tmp_path, base=shapes)
    assert len([name for name in load_header(tmp_path) if name.endswith("base_layer.weight")]) == 2
    assert found.servable, found
    with torch.no_grad():
        model.base_model.model.lm_head.base_layer.weight[0, 0] += 1
    model.save_pretrained(tmp_path)
    assert [finding.code for finding in examine(tmp_path, base=shapes).findings] == ["copy-differs"]
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_bytes((bases["llama"] / "config.json").read_bytes())
    found = examine(tmp_path, base=read_shapes(tmp_path / "base"))
    assert (found.verdict, {finding.code for finding in found.findings}) == ("unknown", {"copy-unread"})


def load_header(directory: Path) -> list[str]:
    return [*read_header(directory / WEIGHTS)]


def train(base: Path, directory: Path, settings: dict[str, Any]) -> Any:
    """A few steps on fixed tokens in float32; the logits of the trained model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]} | settings)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    steps = torch.optim.AdamW((weight for weight in model.parameters() if weight.requires_grad), lr=2e-3)
    for _ in range(4):
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        steps.step()
        steps.zero_grad()
    model.save_pretrained(directory)
    return logits(model)


def tokens() -> Any:
    import torch

    return torch.arange(3, 27).reshape(2, 12)


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=tokens()).logits


def reload(base: Path, adapter: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter))


def rename(directory: Path, change: Callable[[str], str]) -> None:
    save_file({change(name): value for name, value in load_file(directory / WEIGHTS).items()}, directory / WEIGHTS)


def spoil_names(directory: Path) -> None:
    rename(
        directory, lambda name: "module." + name.removeprefix("base_model.model.").replace(".weight", ".default.weight")
    )


def spoil_path(directory: Path) -> None:
    rename(directory, lambda name: name.replace("base_model.model.model.", "base_model.model."))


def spoil_settings(directory: Path) -> None:
    config = json.loads((directory / CONFIG).read_text())
    for key in ("r", "lora_alpha", "peft_type", "target_modules"):
        del config[key]
    (directory / CONFIG).write_text(json.dumps(config))


@pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA with rank_pattern")
@pytest.mark.parametrize(
    ("settings", "spoil", "mendings"),
    [
        ({}, spoil_names, ("names",)),
        ({}, spoil_path, ("names",)),
        ({}, spoil_settings, ("settings",)),
        ({"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 3}}, None, ("one-rank",)),
        ({"rank_pattern": {"v_proj": 2}, "use_rslora": True}, spoil_names, ("names", "one-rank")),
        ({"init_lora_weights": "pissa"}, None, ("plain-start",)),
        ({"init_lora_weights": "pissa", "use_rslora": True}, spoil_names, ("names", "plain-start")),
        (
            {"init_lora_weights": "pissa", "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 3}},
            None,
            ("plain-start", "one-rank"),
        ),
        ({"init_lora_weights": "olora"}, None, ("plain-start",)),
        (
            {"init_lora_weights": "olora", "use_rslora": True, "rank_pattern": {"v_proj": 2}},
            None,
            ("plain-start", "one-rank"),
        ),
    ],
)
def test_a_trained_model_answers_as_before_after_mending(
    settings: dict[str, Any],
    spoil: Callable[[Path], None] | None,
    mendings: tuple[str, ...],
    shallow_dir: Path,
    tmp_path: Path,
) -> None:
    trained = train(shallow_dir, tmp_path / "in", settings)
    if spoil:
        spoil(tmp_path / "in")
    shapes = read_shapes(shallow_dir)
    found = examine(tmp_path / "in", base=shapes)
    assert found.mendings == mendings
    done = mend(tmp_path / "in", tmp_path / "out", found, base=shapes, max_rank=16)
    assert done is not None
    assert done.diagnosis.findings == ()
    far = float((reload(shallow_dir, tmp_path / "out") - trained).abs().max())
    assert far < 1e-4, far
    print(mendings, settings, f"B·A {done.largest:.1e}, logits {far:.1e}")  # noqa: T201


def test_a_model_without_the_layers_that_did_nothing_answers_as_before(shallow_dir: Path, tmp_path: Path) -> None:
    train(shallow_dir, tmp_path / "in", {})
    tensors = load_file(tmp_path / "in" / WEIGHTS)
    tensors["base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"][:] = 0
    save_file(tensors, tmp_path / "in" / WEIGHTS)
    shapes = read_shapes(shallow_dir)
    done = mend(tmp_path / "in", tmp_path / "out", examine(tmp_path / "in", base=shapes), base=shapes, max_rank=16)
    assert done is not None
    assert done.mendings == ("zero-layers",)
    assert float((reload(shallow_dir, tmp_path / "out") - reload(shallow_dir, tmp_path / "in")).abs().max()) < 1e-4
