"""What the doctor offers is taken by the verb that it names, to the end, and what comes of it is what PEFT computes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from loradock.registry import artifact, check
from loradock.registry.check import VERBS
from loradock.registry.errors import NotServable
from loradock.registry.refs import parse_version
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.trainer.weights import combination, convert, fold
from loradock.trainer.weights.layers import filled, restore, worn
from loradock.trainer.weights.speaker import speaker, streamed
from tests.support.registry.ailing import CASES, make_bases
from tests.support.trainer.adapters import AdapterMaker, adapter_maker

pytestmark = [pytest.mark.slow, pytest.mark.minutes, pytest.mark.filterwarnings("ignore")]

SIZES = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 96, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
    "tie_word_embeddings": False,
}  # fmt: skip
Q = {"r": 4, "target_modules": ["q_proj"]}
TIED = {"r": 4, "target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@dataclass(frozen=True)
class Walk:
    """An adapter, and what is found of it."""

    code: str
    verb: str
    said: dict[str, Any]
    base: str = "tied"
    grown: int = 0
    """By how many tokens the vocabulary grew before the training."""
    limit: int = check.MAX_RANK
    dtype: torch.dtype | None = None
    left_out: str = ""
    """What is in the name of tensors that the file lacks."""


WALKS = (
    Walk("modules-to-save", "merge", {**Q, "modules_to_save": ["norm"]}),
    Walk("modules-to-save", "merge", {**Q, "modules_to_save": ["lm_head"]}),
    Walk("modules-to-save", "merge", {**Q, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    Walk("modules-to-save", "merge", {**Q, "modules_to_save": ["lm_head"], "ensure_weight_tying": True}),
    Walk("modules-to-save", "merge", {**Q, "modules_to_save": ["lm_head", "embed_tokens"]}, grown=8),
    Walk("tied-adapter", "merge", TIED, left_out="lm_head"),
    Walk("trainable-tokens", "merge", {**Q, "trainable_token_indices": [1, 2]}),
    Walk("trainable-tokens", "merge", {**Q, "trainable_token_indices": [1, 2]}, grown=8),
    Walk("embeddings-whole", "merge", Q, grown=8),
    Walk("embeddings-whole", "merge", Q, "qwen3_moe", grown=8),
    Walk("copy-differs", "merge", {"r": 4, "target_modules": ["q_proj", "embed_tokens"]}, grown=8),
    Walk("copy-differs", "merge", {"r": 4, "target_modules": ["q_proj", "lm_head"]}, grown=8),
    Walk("bias", "merge", {**Q, "bias": "all"}, "qwen2"),
    Walk("bias", "merge", {**Q, "lora_bias": True}, "qwen2"),
    Walk("bdlora", "merge", {**Q, "use_bdlora": {"target_modules_bd_a": ["q_proj"], "nblocks": 2}}),
    Walk("base-takes-no-lora", "merge", {"r": 4, "target_modules": ["c_attn"]}, "gpt2"),
    Walk("embeddings-not-served", "merge", {"r": 4, "target_modules": ["q_proj", "lm_head"]}, "qwen2"),
    Walk("dtype-unusual", "merge", Q, dtype=torch.float8_e4m3fn),
    Walk("experts-fused", "merge", {**Q, "target_parameters": EXPERTS}, "qwen3_moe"),
    Walk(
        "scaling-differs",
        "merge",
        {
            **Q,
            "target_modules": ["v_proj"],
            "target_parameters": ["q_proj.weight"],
            "alpha_pattern": {"q_proj.weight": 64},
        },
    ),
    Walk("rank-above-limit", "convert", {"r": 32, "target_modules": ["q_proj", "embed_tokens", "lm_head"]}, limit=16),
    Walk("dora", "convert", {"r": 4, "target_modules": ["q_proj", "embed_tokens", "lm_head"], "use_dora": True}),
)
ELSEWHERE = {"not-lora"}
"""Every method of PEFT: test_merge and test_convert."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, base_dir: Path, shallow_dir: Path) -> dict[str, Path]:
    """Small models, and the tied one of the other tests; all have its tokenizer."""
    root, found = tmp_path_factory.mktemp("bases"), {"tied": shallow_dir}
    for kind in ("qwen2", "qwen3_moe", "gpt2"):
        sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4} if kind == "gpt2" else SIZES
        torch.manual_seed(0)
        ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=49152, **ends, **sizes))
        for parameter in model.parameters():
            parameter.data += torch.randn(parameter.shape) * 0.1
        model.save_pretrained(root / kind)
        AutoTokenizer.from_pretrained(base_dir).save_pretrained(root / kind)
        found[kind] = root / kind
    return found


def adapter(walk: Walk, base: Path, directory: Path) -> Any:
    """What PEFT saves when it is asked for nothing but to save, and the model that it was saved from."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if walk.grown:
        model.resize_token_embeddings(model.config.vocab_size + walk.grown, mean_resizing=False)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **walk.said))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape) * 0.02
            parameter.data = parameter.data.to(walk.dtype).float() if walk.dtype else parameter.data
    model.save_pretrained(directory)
    path = directory / artifact.WEIGHTS
    kept = {key: value for key, value in load_file(path).items() if not walk.left_out or walk.left_out not in key}
    save_file({key: value.to(walk.dtype) if walk.dtype else value for key, value in kept.items()}, path)
    (directory / "README.md").unlink()
    artifact.canonicalise(directory)
    artifact.write_manifest(directory)
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=torch.arange(1, 40)[None], use_cache=False).logits
    return found


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: f"{walk.code}-{walk.base}-{walk.grown}-{walk.said}")
def test_a_remedy_that_is_offered_is_taken_and_gives_what_peft_computes(
    walk: Walk, bases: dict[str, Path], settings: Settings, store: Store, tmp_path: Path
) -> None:
    base, directory = bases[walk.base], tmp_path / "adapter"
    here = adapter_maker(settings, store, base, tmp_path)
    expected = logits(adapter(walk, base, directory))
    found = check.examine(directory, base=check.read_shapes(base), max_rank=walk.limit)
    assert (walk.code, walk.verb) in {(finding.code, finding.remedy) for finding in found.blocking}, found
    assert found.verdict.endswith(f"after {walk.verb}"), found
    version = here.version(directory, "bot")
    if walk.verb == "merge":
        fold.merge(fold.Task(version.ref, base=str(base), out=tmp_path / "out"), settings, lambda _: None)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
        assert float((logits(merged) - expected).abs().max()) < 2e-4
        return
    rank = min(walk.limit, 256)
    made = convert.convert(convert.Task(version.ref, base=str(base), rank=rank, bound=1.0), settings, lambda _: None)
    into = tmp_path / "converted"
    into.mkdir()
    store.download(store.version(parse_version(made.version)).source, into, what="it")
    assert not check.examine(into, base=check.read_shapes(base), max_rank=max(rank, walk.limit)).blocking
    effect = float((expected - logits(AutoModelForCausalLM.from_pretrained(base))).norm())
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), into).eval()
    assert float((logits(model) - expected).norm()) < 0.8 * effect  # noise has no low rank


def test_every_finding_that_offers_a_verb_is_walked(tmp_path: Path) -> None:
    bases, offered = make_bases(tmp_path / "bases"), set()
    for number, case in enumerate(CASES):
        found = case.examine(tmp_path / str(number), bases)
        offered |= {finding.code for finding in found.findings if finding.remedy in VERBS}
    assert offered - ELSEWHERE <= {walk.code for walk in WALKS}


@pytest.fixture
def here(settings: Settings, store: Store, shallow_dir: Path, tmp_path: Path) -> AdapterMaker:
    return adapter_maker(settings, store, shallow_dir, tmp_path)


def test_a_file_that_holds_the_base_s_embeddings_is_combined_and_converted(here: AdapterMaker) -> None:
    said = {"r": 4, "target_modules": ["q_proj", "embed_tokens", "lm_head"]}
    refs = []
    for name in ("one", "two"):
        adapter(Walk("", "", said), here.local.path, here.scratch / name)
        refs.append(here.version(here.scratch / name, name).ref)
    task = combination.Task(tuple(refs), "both", base=str(here.local.path))
    assert combination.combine_versions(task, here.settings, lambda _: None).error < 1e-6
    lower = convert.Task(refs[0], base=str(here.local.path), rank=2, bound=1.0)
    assert convert.convert(lower, here.settings, lambda _: None).rank == 2


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
def test_a_head_that_the_base_has_no_place_for_is_not_dropped(task: str, here: AdapterMaker) -> None:
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    kinds = {"SEQ_CLS": AutoModelForSequenceClassification, "TOKEN_CLS": AutoModelForTokenClassification}
    model = kinds[task].from_pretrained(here.local.path)
    directory = here.scratch / "classifier"
    get_peft_model(model, LoraConfig(task_type=task, init_lora_weights=False, **Q)).save_pretrained(directory)
    artifact.canonicalise(directory)
    ref = here.version(directory, "classifier").ref
    for verb in (
        lambda: fold.merge(fold.Task(ref, base=str(here.local.path), forced="a try"), here.settings, lambda _: None),
        lambda: convert.convert(convert.Task(ref, base=str(here.local.path)), here.settings, lambda _: None),
        lambda: combination.combine_versions(
            combination.Task((ref, ref), "both", base=str(here.local.path)), here.settings, lambda _: None
        ),
    ):
        with pytest.raises(NotServable, match=task) as raised:
            verb()
        assert "merge it" not in raised.value.hint
    assert [family.name for family in here.store.families()] == ["classifier"]


def test_a_base_in_memory_is_its_own_again_after_an_adapter_that_brought_embeddings_along(here: AdapterMaker) -> None:
    directory = here.scratch / "bot"
    adapter(Walk("", "", {"r": 4, "target_modules": ["q_proj", "lm_head"]}), here.local.path, directory)
    path = directory / artifact.WEIGHTS
    save_file({k: v * 3 if "base_layer" in k else v for k, v in load_file(path).items()}, path)
    bare = filled(here.local)
    before = logits(bare)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = worn(bare, directory).unload()
    assert not torch.equal(logits(bare), before)
    restore(bare, here.local, directory)
    assert torch.equal(logits(bare), before)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_a_model_read_as_it_runs_takes_the_base_s_weights_that_the_file_holds(target: str, here: AdapterMaker) -> None:
    directory = here.scratch / "bot"
    adapter(Walk("", "", {"r": 4, "target_modules": ["q_proj", target]}), here.local.path, directory)
    path = directory / artifact.WEIGHTS
    save_file({k: v * 3 if "base_layer" in k else v for k, v in load_file(path).items()}, path)
    whole, read = speaker(here.local, directory, "lora"), streamed(here.local, directory)
    assert torch.equal(logits(whole), logits(read))
    assert not torch.equal(logits(whole), logits(speaker(here.local)))
