"""The doctor held against vLLM itself: its parsing and validation run on every adapter of the suite."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loradock.registry.check import RANKS
from loradock.registry.check.vllm import FUSED_EXPERTS, NO_EMBEDDINGS, NO_LORA, PLAIN_STARTS
from tests.support.registry.ailing import APART, CASES, EXPERTS, LLAMA, MAX_RANK, PHI3, VOCABULARY, Case, make_bases

SILENT = {
    # what vLLM reads without a word, and then serves as something else than was trained, or as the base alone
    "wrong-base", "layer-missing", "module-misnamed", "tensor-too-small", "tensor-too-large", "tensor-transposed",
    "vocabulary-differs", "tensor-empty", "ranks-differ", "rank-not-configured", "half-pair", "no-lora-weights",
    "no-effect", "not-finite", "not-lora", "kasa", "arrow",
    # what vLLM reads and PEFT does not, so that nothing could be held against it
    "prefix-missing", "prefix-doubled", "wrapper-in-names", "method-missing", "targets-missing", "targets-invalid",
    "tensors-untargeted",
    # what vLLM would load, and loradock does not let near it
    "link-leads-out", "manifest-leads-out", "manifest-broken",
    "pattern-unsafe",
    # what depends on the model that vLLM would have loaded
    "base-takes-no-lora", "embeddings-not-served",
    "experts-fused", "experts-apart", "experts-missing", "experts-uneven", "experts-differ",
    # what PEFT does otherwise than vLLM
    "scaling-differs", "copy-differs", "tied-adapter",
    # what vLLM does not read of a configuration
    "task-differs",
}  # fmt: skip
"""Findings that block although vLLM's parsing and validation let them pass."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_bases(tmp_path_factory.mktemp("bases"))


def vllm_refuses(directory: Path) -> str:
    """Why vLLM does not load an adapter; nothing when it does."""
    from vllm.config.lora import LoRAConfig
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    modules = {name.rsplit(".", 1)[-1] for name in (*LLAMA, *PHI3)} | {"embed_tokens", "lm_head", "c_attn", "c_fc"}
    modules |= {"experts", *(name.removeprefix("mlp.") for name in APART)}
    try:
        helper = PEFTHelper.from_local_dir(str(directory), 1024)
        helper.validate_legal(LoRAConfig(max_lora_rank=MAX_RANK))
        found = LoRAModel.from_local_checkpoint(
            str(directory), modules, helper, lora_model_id=1, device="cpu", model_vocab_size=VOCABULARY
        )
        for weights in found.loras.values():
            weights.optimize()
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_vllm_refuses_the_doctor_refuses_and_it_refuses_nothing_more_without_a_reason(
    case: Case, bases: dict[str, Path], tmp_path: Path
) -> None:
    found = case.examine(tmp_path / "adapter", bases)
    refusal = vllm_refuses(tmp_path / "adapter")
    if refusal:
        assert not found.servable, refusal
    else:
        assert {finding.code for finding in found.blocking} <= SILENT, found


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.base == "moe" and "one by one" in case.name], ids=lambda case: case.name
)
def test_experts_that_vllm_cannot_pack_are_found(case: Case, bases: dict[str, Path], tmp_path: Path) -> None:
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.lora_weights import PackedLoRALayerWeights
    from vllm.lora.peft_helper import PEFTHelper

    found = case.examine(tmp_path / "adapter", bases)
    modules = {name.removeprefix("mlp.") for name in APART}
    helper = PEFTHelper.from_local_dir(str(tmp_path / "adapter"), 1024)
    loaded = LoRAModel.from_local_checkpoint(
        str(tmp_path / "adapter"), modules, helper, lora_model_id=1, device="cpu", model_vocab_size=VOCABULARY
    )
    stack = "model.layers.0.mlp.experts"
    order = [f"{stack}.{n}.{part}_proj" for n in range(EXPERTS) for part in ("gate", "down", "up")]
    try:
        PackedLoRALayerWeights.pack_moe([loaded.get_lora(name) for name in order], stack)
    except (ValueError, AssertionError, RuntimeError):
        assert {finding.code for finding in found.blocking} & {"experts-missing", "experts-uneven", "tensor-too-small"}
    else:
        assert not {finding.code for finding in found.blocking} & {"experts-missing", "experts-uneven"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a pattern of a parameter", "experts in one tensor, by pattern"])
def test_the_scales_are_held_against_those_that_vllm_computes(
    name: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    """PEFT's rule is held in test_effect; here 64 / 8 is PEFT's, for `q_proj.weight`."""
    from vllm.lora.peft_helper import PEFTHelper

    (case,) = (case for case in CASES if case.name == name)
    found = case.examine(tmp_path / "adapter", bases)
    helper = PEFTHelper.from_local_dir(str(tmp_path / "adapter"), 1024)
    if name == "a pattern of a parameter":
        _, scale = helper.get_rank_and_scaling("model.layers.0.self_attn.q_proj")
        assert f"{scale / (64 / 8):g} times" in found.blocking[0].text
    else:
        assert helper.get_rank_and_scaling("model.layers.0.mlp.experts") == (8, 3 / 8)
        assert found.servable


def models() -> Path:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def test_the_ranks_and_the_starts_are_vllm_s() -> None:
    text = (models() / "config" / "lora.py").read_text()
    assert re.search(r"MaxLoRARanks = Literal\[(.+?)\]", text)[1] == ", ".join(map(str, RANKS))  # type: ignore[index]
    helper = (models() / "lora" / "peft_helper.py").read_text()
    listed = re.search(r"init\.lower\(\) in \((.+?)\)", helper, re.DOTALL)
    assert listed is not None
    assert tuple(re.findall(r'"(\w+)"', listed[1])) == PLAIN_STARTS


@pytest.mark.slow
def test_the_architectures_are_vllm_s() -> None:
    directory = models() / "model_executor" / "models"
    classes: dict[str, list[tuple[list[str], bool | None]]] = {}
    for path in directory.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                parents = [ast.unparse(base).split("[")[0].rsplit(".", 1)[-1] for base in node.bases]
                classes.setdefault(node.name, []).append((parents, embeddings_of(node)))
                if any(
                    ast.unparse(part).startswith("is_3d_moe_weight: ") and "True" in ast.unparse(part)
                    for part in node.body
                ):
                    classes[f"{node.name}.is_3d_moe_weight"] = []
    text = (directory / "registry.py").read_text()
    served = listed(text, "_TEXT_GENERATION_MODELS")
    assert {name for name, kind in served if not takes_lora(kind, classes)} == NO_LORA
    fused = {name for name, kind in listed(text, "_MULTIMODAL_MODELS") + served if holds_fused(kind, classes)}
    assert fused == FUSED_EXPERTS
    with_lora = [(name, kind) for name, kind in served if takes_lora(kind, classes)]
    assert {name for name, kind in with_lora if not takes_embeddings(kind, classes)} == NO_EMBEDDINGS


def listed(text: str, table: str) -> list[tuple[str, str]]:
    """Each architecture of a table of vLLM's, and the class that serves it."""
    part = text.partition(f"{table} = {{")[2].partition("\n}")[0]
    return re.findall(r'"(\w+)":\s*\(\s*"(?!vllm)[\w.]+",\s*"(\w+)"', part)


def holds_fused(kind: str, classes: dict[str, Any], seen: tuple[str, ...] = ()) -> bool:
    """Whether a class takes LoRA for all experts in one tensor, or one of its parents does."""
    told = f"{kind}.is_3d_moe_weight"
    if told in classes:
        return True
    parents = [parent for known, _ in classes.get(kind, []) for parent in known]
    return kind not in seen and any(holds_fused(parent, classes, (*seen, kind)) for parent in parents)


def embeddings_of(node: ast.ClassDef) -> bool | None:
    """Whether a class says that its embeddings take LoRA; None where it leaves that to its parents."""
    for part in assignments(node):
        if getattr(part.targets[0], "id", "") == "embedding_modules" and isinstance(part.value, ast.Dict):
            return bool(part.value.keys)
    return None


def assignments(node: ast.ClassDef) -> Iterator[ast.Assign]:
    return (part for part in node.body if isinstance(part, ast.Assign))


def takes_lora(kind: str, classes: dict[str, Any], seen: tuple[str, ...] = ()) -> bool:
    if kind == "SupportsLoRA":
        return True
    parents = [parent for known, _ in classes.get(kind, []) for parent in known]
    return kind not in seen and any(takes_lora(parent, classes, (*seen, kind)) for parent in parents)


def takes_embeddings(kind: str, classes: dict[str, Any], seen: tuple[str, ...] = ()) -> bool:
    told = [says for _, says in classes.get(kind, []) if says is not None]
    if told:
        return bool(told[0])
    parents = [parent for known, _ in classes.get(kind, []) for parent in known]
    return kind not in seen and any(takes_embeddings(parent, classes, (*seen, kind)) for parent in parents)
