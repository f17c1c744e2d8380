"""Settings by module mean after saving and importing what PEFT took them for in training."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import get_pattern_key
from transformers import AutoConfig, AutoModelForCausalLM

from loradock.registry import versions
from loradock.registry.artifact import CONFIG
from loradock.registry.base import LocalBase, identify
from loradock.registry.records import Base, TextSettings
from loradock.registry.store import Store
from loradock.trainer import adapter, methods, workdir
from loradock.trainer.recipe import Method
from tests.support.trainer.training import written

ALPHAS = {"layers.0.self_attn.q_proj": 512, "v_proj": 8, r".*\.(q|v)_proj": 2}
RANKS = {"v_proj": 3, r"model\.layers\.0\..*": 5, "self_attn.q_proj": 2}
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}
BASE = Base(id="base", config_digest="c" * 64, weights_digest="d" * 64)


def meant(name: str) -> tuple[int, float]:
    """Rank and scaling of a module by PEFT's own rule, in the order above."""
    rank = RANKS.get(get_pattern_key(list(RANKS), name), 4)
    return rank, ALPHAS.get(get_pattern_key(list(ALPHAS), name), 8) / rank


def worn(model: Any) -> dict[str, tuple[int, float]]:
    """Rank and scaling of every layer, as PEFT has them."""
    return {
        name.removeprefix("base_model.model."): (layer.r["default"], layer.scaling["default"])
        for name, layer in model.named_modules()
        if isinstance(getattr(layer, "scaling", None), dict)
    }


def base(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory).eval()


def loaded(directory: Path, files: Path) -> Any:
    return PeftModel.from_pretrained(base(directory), files).eval()


def shaken(model: Any) -> Any:
    """The model with weights that are not at their start."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory, shallow_dir: Path) -> Path:
    """An adapter as another program writes it, its patterns in the order that they were meant in."""
    directory = tmp_path_factory.mktemp("foreign")
    config = LoraConfig(task_type="CAUSAL_LM", lora_alpha=8, rank_pattern=RANKS, alpha_pattern=ALPHAS, **LORA)
    shaken(get_peft_model(base(shallow_dir), config)).save_pretrained(directory, save_embedding_layers=False)
    config = json.loads((directory / CONFIG).read_text()) | {"rank_pattern": RANKS, "alpha_pattern": ALPHAS}
    (directory / CONFIG).write_text(json.dumps(config))
    return directory


def test_what_is_saved_is_what_was_trained(shallow_dir: Path, tmp_path: Path) -> None:
    model = base(shallow_dir)
    method = Method(lora_alpha=8, rank_pattern=RANKS, alpha_pattern=ALPHAS, **LORA)
    trained = shaken(methods.wrap(model, methods.configure(method, model)))
    assert worn(trained) == {name: meant(name) for name in worn(trained)}
    ids = torch.arange(100, 130)[None]
    with torch.inference_mode():
        expected = trained(ids).logits
        adapter.save(trained, tmp_path / "out", BASE)
        again = loaded(shallow_dir, tmp_path / "out")
        assert worn(again) == worn(trained)
        assert torch.equal(again(ids).logits, expected)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("loha", {"r": 4, "alpha_pattern": {"q_proj": 2, ".*proj": 512}, "rank_pattern": {"v_proj": 2, ".*proj": 3}}),
        ("lokr", {"r": 4, "rank_pattern": {"v_proj": 2, ".*proj": 3}}),
        ("delora", {"rank_pattern": {"v_proj": 2, ".*proj": 4}, "lambda_pattern": {"v_proj": 2, ".*proj": 4}}),
        ("c3a", {"block_size": 8, "block_size_pattern": {"v_proj": 4, "self_attn.[a-z]_proj": 2}}),
        ("fourierft", {"n_frequency": 9, "n_frequency_pattern": {"v_proj": 7, "self_attn.[a-z]_proj": 5}}),
        ("waveft", {"n_frequency": 9, "n_frequency_pattern": {"v_proj": 7, "self_attn.[a-z]_proj": 5}}),
        ("osf", {"rank_pattern": {"v_proj": 2, ".*proj": 3}}),
        ("pissa", {"r": 4, "rank_pattern": {"v_proj": 2, ".*proj": 3}, "alpha_pattern": {"q_proj": 2, ".*proj": 9}}),
    ],
)
def test_so_it_is_with_every_method_that_has_such_settings(kind: str, given: dict[str, Any], tmp_path: Path) -> None:
    def small() -> Any:
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 32, "intermediate_size": 24, "head_dim": 4}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes, **heads))

    model, ids = small(), torch.arange(8)[None]
    method = Method(type=kind, target_modules=["q_proj", "v_proj"], **given)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        wrapped = methods.wrap(model, methods.configure(method, model))
        start = adapter.keep_start(wrapped, tmp_path / "start")
        expected = shaken(wrapped)(ids).logits
        adapter.save(wrapped, tmp_path / "out", BASE, start)
        again = PeftModel.from_pretrained(small(), tmp_path / "out").eval()
        assert torch.allclose(again(ids).logits, expected, atol=1e-5)


def test_an_import_keeps_what_the_order_of_the_file_means(
    store: Store, foreign: Path, shallow_dir: Path, tmp_path: Path
) -> None:
    local = LocalBase(shallow_dir, identify(shallow_dir, base_id="base"))
    version = versions.import_directory(store, foreign, local, "support-bot")
    ids = torch.arange(100, 130)[None]
    with versions.fetched(store, version) as found, torch.inference_mode():
        again, original = loaded(shallow_dir, found), loaded(shallow_dir, foreign)
        assert worn(again) == worn(original) == {name: meant(name) for name in worn(original)}
        assert torch.equal(again(ids).logits, original(ids).logits)
    assert versions.import_directory(store, foreign, local, "support-bot").ref == version.ref


@pytest.mark.slow  # vLLM takes half a minute to import
def test_vllm_reads_the_same_out_of_it(store: Store, foreign: Path, shallow_dir: Path) -> None:
    from vllm.lora.peft_helper import PEFTHelper

    version = versions.import_directory(
        store, foreign, LocalBase(shallow_dir, identify(shallow_dir, base_id="base")), "support-bot"
    )
    with versions.fetched(store, version) as found:
        helper = PEFTHelper.from_local_dir(str(found), None)
        names = worn(loaded(shallow_dir, found))
    assert {name: helper.get_rank_and_scaling(name) for name in names} == {name: meant(name) for name in names}


def test_a_training_of_another_order_does_not_go_on_from_this_ones_checkpoints(
    shallow_dir: Path, tmp_path: Path
) -> None:
    there = [
        workdir.identity(
            written(tmp_path, shallow_dir, method={**LORA, "alpha_pattern": dict(items)})[0].recipe,
            "d",
            BASE,
            TextSettings(),
        )
        for items in (list(ALPHAS.items()), list(ALPHAS.items())[::-1])
    ]
    assert there[0] != there[1]
