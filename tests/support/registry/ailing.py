"""Adapters that something is wrong with, and what the doctor must find: `python -m tests.support.registry.ailing`.

They are written for small bases made here, of one architecture each, whose files are real and whose weights are random.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from loradock.registry.artifact import CONFIG, MANIFEST, WEIGHTS, write_manifest
from loradock.registry.check import BaseShapes, Diagnosis, examine, read_shapes

HIDDEN, HEADS, KEPT, BETWEEN, LAYERS, VOCABULARY = 64, 4, 32, 96, 2, 120
MAX_RANK = 16
LLAMA = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, KEPT),
    "self_attn.v_proj": (HIDDEN, KEPT),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (HIDDEN, BETWEEN),
    "mlp.up_proj": (HIDDEN, BETWEEN),
    "mlp.down_proj": (BETWEEN, HIDDEN),
}
GPT2 = {
    "attn.c_attn": (HIDDEN, 3 * HIDDEN),
    "attn.c_proj": (HIDDEN, HIDDEN),
    "mlp.c_fc": (HIDDEN, BETWEEN),
    "mlp.c_proj": (BETWEEN, HIDDEN),
}
PHI3 = {
    "self_attn.qkv_proj": (HIDDEN, HIDDEN + 2 * KEPT),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_up_proj": (HIDDEN, 2 * BETWEEN),
    "mlp.down_proj": (BETWEEN, HIDDEN),
}

ATTENTION = {name: widths for name, widths in LLAMA.items() if "self_attn" in name}
EXPERTS = 4
APART = {
    f"mlp.experts.{number}.{part.removeprefix('mlp.')}": widths
    for number in range(EXPERTS)
    for part, widths in LLAMA.items()
    if "mlp" in part
}
FUSED = {"mlp.experts.base_layer": (HIDDEN, 2 * BETWEEN), "mlp.experts": (BETWEEN, HIDDEN)}
"""As PEFT names the parameters gate_up_proj and down_proj of all experts."""

Tensors = dict[str, NDArray[Any]]


def make_bases(root: Path) -> dict[str, Path]:
    """Small models on disk, by what is told of them below."""
    kinds = {
        "llama": ("LlamaForCausalLM", "llama", LLAMA, "model.layers", ("model.embed_tokens", "lm_head")),
        "tied": ("LlamaForCausalLM", "llama", LLAMA, "model.layers", ("model.embed_tokens",)),
        "headless": ("LlamaModel", "llama", LLAMA, "layers", ()),
        "qwen2": ("Qwen2ForCausalLM", "qwen2", LLAMA, "model.layers", ("model.embed_tokens",)),
        "phi3": ("Phi3ForCausalLM", "phi3", PHI3, "model.layers", ("model.embed_tokens", "lm_head")),
        "gpt2": ("GPT2LMHeadModel", "gpt2", GPT2, "h", ("wte",)),
    }
    moe = (
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        {**ATTENTION, **APART},
        "model.layers",
        ("model.embed_tokens", "lm_head"),
    )
    gptoss = ("GptOssForCausalLM", "gpt_oss", ATTENTION, "model.layers", ("model.embed_tokens", "lm_head"))
    kinds |= {"moe": moe, "gptoss": gptoss}
    return {name: _make_base(root / name, *kind) for name, kind in kinds.items()} | {
        "packed": _make_packed(root / "packed")
    }


def _make_packed(directory: Path) -> Path:
    """A base whose files and configuration do not tell the shapes of its modules, for its weights are packed."""
    _make_base(directory, "Phi3ForCausalLM", "phi3", PHI3, "model.layers", ("model.embed_tokens", "lm_head"))
    found = load_file(directory / "model.safetensors")
    packed = {name.replace("proj.weight", "proj.qweight"): value for name, value in found.items()}
    save_file(packed, directory / "model.safetensors")
    return directory


def _make_base(
    directory: Path,
    architecture: str,
    model_type: str,
    modules: Mapping[str, tuple[int, int]],
    stack: str,
    embeddings: Sequence[str],
) -> Path:
    random = np.random.default_rng(7)
    directory.mkdir(parents=True)
    tensors = {}
    for layer in range(LAYERS):
        for module, (inputs, outputs) in modules.items():
            shape = (inputs, outputs) if model_type == "gpt2" else (outputs, inputs)
            tensors[f"{stack}.{layer}.{module}.weight"] = random.standard_normal(shape).astype(np.float32)
            if model_type == "qwen2" and module.endswith(("q_proj", "k_proj", "v_proj")):
                tensors[f"{stack}.{layer}.{module}.bias"] = np.zeros(outputs, np.float32)
        if model_type == "gpt_oss":
            for part, shape in {"gate_up_proj": (HIDDEN, 2 * BETWEEN), "down_proj": (BETWEEN, HIDDEN)}.items():
                values = random.standard_normal((EXPERTS, *shape)).astype(np.float32)
                tensors[f"{stack}.{layer}.mlp.experts.{part}"] = values
    for name in embeddings:
        tensors[f"{name}.weight"] = random.standard_normal((VOCABULARY, HIDDEN)).astype(np.float32)
    save_file(tensors, directory / "model.safetensors")
    config = {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS * KEPT // HIDDEN,
        "intermediate_size": BETWEEN,
        "num_hidden_layers": LAYERS,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": len(embeddings) == 1,
    }
    if model_type in ("qwen3_moe", "gpt_oss"):
        config |= {"num_experts" if model_type == "qwen3_moe" else "num_local_experts": EXPERTS}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def write(
    directory: Path,
    *,
    rank: int = 8,
    modules: Mapping[str, tuple[int, int]] = LLAMA,
    stack: str = "model.layers",
    layers: int = LAYERS,
    config: Mapping[str, Any] | None = None,
    only: Sequence[str] = ("q_proj", "v_proj", "down_proj"),
    ranks: Mapping[str, int] | None = None,
) -> Path:
    """A plain LoRA adapter as PEFT writes it."""
    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(3)
    tensors: Tensors = {}
    chosen = {name: widths for name, widths in modules.items() if name.endswith(tuple(only))}
    for layer in range(layers):
        for module, (inputs, outputs) in chosen.items():
            name = f"{stack}.{layer}.{module}"
            own = (ranks or {}).get(name.rsplit(".", 1)[-1], rank)
            tensors[f"base_model.model.{name}.lora_A.weight"] = _normal(random, own, inputs)
            tensors[f"base_model.model.{name}.lora_B.weight"] = _normal(random, outputs, own)
    save_file(tensors, directory / WEIGHTS, {"format": "pt"})
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in chosen}),
        "bias": "none",
        "init_lora_weights": True,
    }
    (directory / CONFIG).write_text(json.dumps(settings | dict(config or {})))
    return directory


def _normal(random: np.random.Generator, *shape: int) -> NDArray[Any]:
    return (random.standard_normal(shape) * 0.1).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """An adapter, and what the doctor must say of it."""

    name: str
    build: Callable[[Path], object]
    codes: frozenset[str]
    verdict: str
    base: str = "llama"

    def examine(self, directory: Path, bases: Mapping[str, Path]) -> Diagnosis:
        """Write it and let the doctor see it."""
        self.build(directory)
        return examine(directory, base=self.shapes(bases), max_rank=MAX_RANK)

    def shapes(self, bases: Mapping[str, Path]) -> BaseShapes:
        """The base that it is for, where one is given."""
        return shapes(bases[self.base]) if self.base else BaseShapes()


@functools.cache
def shapes(directory: Path) -> BaseShapes:
    """The shapes of a base, read once."""
    return read_shapes(directory)


CASES: list[Case] = []
FINE, NEVER, UNKNOWN = "servable", "not servable", "unknown"
CONVERT, MERGE = "servable after convert", "servable after merge"


def mending(*names: str) -> str:
    return f"servable after repair: {', '.join(names)}"


def case(name: str, build: Callable[[Path], object], codes: str, verdict: str, base: str = "llama") -> None:
    CASES.append(Case(name, build, frozenset(codes.split()), verdict, base))


def with_config(**config: Any) -> Callable[[Path], object]:
    return lambda directory: write(directory, config=config)


def without(key: str) -> Callable[[Path], object]:
    def build(directory: Path) -> None:
        path = write(directory) / CONFIG
        config = json.loads(path.read_text())
        del config[key]
        path.write_text(json.dumps(config))

    return build


def with_tensors(change: Callable[[Tensors], Tensors], **kind: Any) -> Callable[[Path], object]:
    def build(directory: Path) -> None:
        path = write(directory, **kind) / WEIGHTS
        changed = change(load_file(path))
        save_file({name: np.ascontiguousarray(value) for name, value in changed.items()}, path, {"format": "pt"})

    return build


def renamed(change: Callable[[str], str], **kind: Any) -> Callable[[Path], object]:
    return with_tensors(lambda tensors: {change(name): value for name, value in tensors.items()}, **kind)


def adding(tensors: Mapping[str, tuple[int, ...]], **config: Any) -> Callable[[Path], object]:
    more = {f"base_model.model.{name}": np.full(shape, 0.5, np.float32) for name, shape in tensors.items()}
    return with_tensors(lambda found: found | more, config=config)


def setting(end: str, value: Callable[[NDArray[Any]], NDArray[Any]], *, where: str = "") -> Callable[[Path], object]:
    return with_tensors(
        lambda tensors: {
            name: value(content) if name.endswith(end) and where in name else content
            for name, content in tensors.items()
        }
    )


def copied(
    module: str, base: str = "llama", *, dtype: type = np.float32, change: Callable[[Tensors], object] = len
) -> Callable[[Path], object]:
    """As PEFT keeps a copy of the base's own weight beside LoRA on it."""

    def build(directory: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            held = load_file(make_bases(Path(scratch) / "bases")[base] / "model.safetensors")
        weight = held.get(f"{module}.weight", held["model.embed_tokens.weight"]).astype(dtype)
        path = write(directory) / WEIGHTS
        more = {f"base_model.model.{module}.base_layer.weight": weight}
        change(more)
        save_file(load_file(path) | more, path, {"format": "pt"})

    return build


def one_by_one(change: Callable[[Tensors], Tensors] = dict, base: str = "moe", **kind: Any) -> Callable[[Path], object]:
    """LoRA on each expert by itself."""
    ends = ("gate_proj", "up_proj", "down_proj")
    return with_tensors(change, modules=APART, only=ends, **kind)


def fused(
    change: Callable[[Tensors], Tensors] = dict, *, rank: int = 8, rows: int = 8 * EXPERTS, **config: Any
) -> Callable[[Path], object]:
    """LoRA on the parameters of all experts, as PEFT writes it."""
    wanted = {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]} | config
    ranks = {"base_layer": rows, "experts": rows}
    return with_tensors(change, modules=FUSED, only=("experts", "base_layer"), rank=rank, ranks=ranks, config=wanted)


def with_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def build(directory: Path) -> None:
        path = write(directory) / WEIGHTS
        path.write_bytes(change(path.read_bytes()))

    return build


def with_header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Change one entry of the header, and leave the data as it is."""

    def build(directory: Path) -> None:
        path = write(directory) / WEIGHTS
        data = path.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return build


def with_files(change: Callable[[Path], object]) -> Callable[[Path], object]:
    def build(directory: Path) -> None:
        change(write(directory))

    return build


Q0 = "model.layers.0.self_attn.q_proj"
_FIRST = f"base_model.model.{Q0}.lora_A.weight"
_EMBEDDED = {"model.embed_tokens.lora_embedding_A": (8, VOCABULARY), "model.embed_tokens.lora_embedding_B": (HIDDEN, 8)}
_HEADED = {"lm_head.lora_A.weight": (8, HIDDEN), "lm_head.lora_B.weight": (VOCABULARY, 8)}
_TARGETS = ["q_proj", "v_proj", "down_proj"]


def _seven(tensors: Tensors) -> Tensors:
    """As an adapter of more layers has them."""
    return tensors | {name.replace("layers.1.", "layers.7."): value for name, value in tensors.items()}


def _twins(tensors: Tensors) -> Tensors:
    return {
        name.replace(".weight", f".{adapter}.weight"): value
        for name, value in tensors.items()
        for adapter in ("default", "second")
    }


def _pickled(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "adapter_model.bin")


def _linked(directory: Path) -> None:
    outside = directory.parent / f"{directory.name}-outside"
    shutil.move(directory / WEIGHTS, outside)
    (directory / WEIGHTS).symlink_to(outside)


def _manifest(path: str) -> Callable[[Path], object]:
    text = json.dumps({"files": [{"path": path, "size": 1, "sha256": "0" * 64}]})
    return with_files(lambda directory: (directory / MANIFEST).write_text(text))


def _changed_since(directory: Path) -> None:
    write_manifest(directory)
    (directory / "README.md").write_text("added later")


def _twice(data: bytes) -> bytes:
    length = struct.unpack("<Q", data[:8])[0]
    header = data[8 : 8 + length].rstrip()
    name, _, rest = header[1:].partition(b":")
    first = rest[: rest.index(b"}") + 1]
    doubled = header[:-1] + b"," + name + b":" + first + b"}"
    return struct.pack("<Q", len(doubled)) + doubled + data[8 + length :]


# What vLLM serves as it is
case("plain", write, "", FINE)
case(
    "plain, on a base with fused weights",
    lambda d: write(d, modules=PHI3, only=("qkv_proj", "gate_up_proj")),
    "",
    FINE,
    "phi3",
)
case("rsLoRA", with_config(use_rslora=True), "", FINE)
case("EVA", with_config(init_lora_weights="eva"), "", FINE)
case("init_lora_weights false", with_config(init_lora_weights=False), "", FINE)
case("embeddings", adding(_EMBEDDED, target_modules=[*_TARGETS, "embed_tokens"]), "", FINE)
case("lm_head", adding(_HEADED, target_modules=[*_TARGETS, "lm_head"]), "", FINE)
case("lm_head that the base ties", adding(_HEADED, target_modules=[*_TARGETS, "lm_head"]), "", FINE, "tied")
case("embeddings kept beside", copied("model.embed_tokens"), "", FINE)
case("a head kept beside", copied("lm_head"), "", FINE)
case("a head kept beside that the base ties", copied("lm_head", "tied"), "", FINE, "tied")
case("a head kept beside in half the bytes", copied("lm_head", dtype=np.float16), "", FINE)
case("targets as an expression", with_config(target_modules=r".*\.(q_proj|v_proj|down_proj)"), "", FINE)
case(
    "rank_pattern",
    lambda d: write(d, config={"rank_pattern": {"q_proj": 4}}, ranks={"q_proj": 4}),
    "uneven-layers",
    FINE,
)
case("alpha_pattern and rsLoRA", with_config(alpha_pattern={"q_proj": 32}, use_rslora=True), "uneven-layers", FINE)
case("LoRA-GA", with_config(init_lora_weights="lora_ga"), "start-left-in", FINE)
case("one layer without effect", setting("lora_B.weight", np.zeros_like, where=Q0), "layers-idle", FINE)
case("float64", setting("", lambda value: value.astype(np.float64)), "dtype-unusual", FINE)
case("a target without tensors", with_config(target_modules=[*_TARGETS, "k_proj"]), "targets-idle", FINE)
case("a Trainer's checkpoint", with_files(lambda d: (d / "optimizer.pt").write_bytes(b"x")), "pickles-beside", FINE)
case("another tool's manifest", with_files(lambda d: (d / MANIFEST).write_text("{}")), "manifest-foreign", FINE)

# Ranks and scaling
case("rank 32", lambda d: write(d, rank=32), "rank-above-limit", CONVERT)
case(
    "a pattern of a parameter",
    with_config(target_modules=_TARGETS[1:], target_parameters=["q_proj.weight"], alpha_pattern={"q_proj.weight": 64}),
    "scaling-differs uneven-layers",
    MERGE,
)
case("rank 1024", lambda d: write(d, rank=1024), "rank-above-limit", CONVERT)
case(
    "rank 32 by pattern",
    lambda d: write(d, config={"rank_pattern": {"v_proj": 32}}, ranks={"v_proj": 32}),
    "rank-above-limit uneven-layers",
    CONVERT,
)
case(
    "a pattern that nothing follows",
    with_config(rank_pattern={"k_proj": 64}),
    "rank-above-limit uneven-layers",
    mending("one-rank"),
)
case("no rank", without("r"), "rank-missing", mending("settings"))
case("rank 0", with_config(r=0), "rank-invalid rank-not-configured", NEVER)
case("rank as text", with_config(r="8"), "rank-invalid rank-not-configured", NEVER)
case("no lora_alpha", without("lora_alpha"), "alpha-missing", mending("settings"))
case("lora_alpha as text", with_config(lora_alpha="16"), "alpha-invalid", NEVER)
case("lora_alpha 0", with_config(lora_alpha=0), "no-effect", NEVER)
case("a pattern that is a list", with_config(rank_pattern=[8]), "pattern-invalid", NEVER)
case("rank 0 by pattern", with_config(rank_pattern={"k_proj": 0}), "pattern-invalid", NEVER)
case("a pattern that never ends", with_config(alpha_pattern={"(a+)+b": 8}), "pattern-unsafe", NEVER)

# Methods
case("DoRA", adding({f"{Q0}.lora_magnitude_vector": (HIDDEN,)}, use_dora=True), "dora", CONVERT)
case(
    "biases of the base",
    adding({"model.layers.0.self_attn.q_proj.bias": (HIDDEN,)}, bias="all"),
    "bias",
    MERGE,
    "qwen2",
)
case("biases that are told of only", with_config(bias="lora_only"), "bias", mending("settings"))
case("biases of its own", adding({f"{Q0}.lora_B.bias": (HIDDEN,)}, lora_bias=True), "bias", NEVER)
case("biases of its own, on biases", adding({f"{Q0}.lora_B.bias": (HIDDEN,)}, lora_bias=True), "bias", MERGE, "qwen2")
case(
    "a whole module",
    adding({"lm_head.weight": (VOCABULARY, HIDDEN)}, modules_to_save=["lm_head"]),
    "modules-to-save",
    MERGE,
)
case(
    "a whole module that is told of only",
    with_config(modules_to_save=["lm_head"]),
    "modules-to-save",
    mending("settings"),
)
case(
    "trained tokens",
    adding({"model.embed_tokens.token_adapter.trainable_tokens_delta": (2, HIDDEN)}, trainable_token_indices=[1, 2]),
    "trainable-tokens",
    MERGE,
)
case("replicated layers", with_config(layer_replication=[[0, 2], [1, 2]]), "layers-replicated", NEVER)
case("activated LoRA", with_config(alora_invocation_tokens=[1, 2]), "activated-lora", NEVER)
case("block-diagonal", with_config(use_bdlora={"nblocks": 2}), "bdlora", MERGE)
case("QALoRA", with_config(use_qalora=True), "qalora", NEVER)
case("KaSA", with_config(kasa_config={"beta": 1e-4}), "kasa", NEVER)
case("Arrow", with_config(arrow_config={"top_k": 2}), "arrow", NEVER)
case("IA3", with_config(peft_type="IA3"), "not-lora", MERGE)
case("LoHa", with_config(peft_type="LOHA"), "not-lora", CONVERT)
case("AdaLoRA", with_config(peft_type="ADALORA", rank_pattern={"q_proj": [True, False]}), "not-lora", CONVERT)
case("prompt tuning", with_config(peft_type="PROMPT_TUNING"), "not-lora", NEVER)
case("X-LoRA", with_config(peft_type="XLORA"), "not-lora", NEVER)
case("a method nobody knows", with_config(peft_type="FANCY"), "not-lora", NEVER)
case("no method", without("peft_type"), "method-missing", mending("settings"))

case(
    "magnitudes that nothing is said of",
    adding({f"{Q0}.lora_magnitude_vector": (HIDDEN,)}),
    "magnitudes-unclaimed",
    NEVER,
)
case(
    "an embedding and a head that are tied",
    adding({**_EMBEDDED, **_HEADED}, target_modules=[*_TARGETS, "embed_tokens"], ensure_weight_tying=True),
    "",
    FINE,
    "tied",
)
case(
    "an embedding that acts in the head too",
    adding(_EMBEDDED, target_modules=[*_TARGETS, "embed_tokens"], ensure_weight_tying=True),
    "tied-adapter",
    MERGE,
    "tied",
)
for _task in ("SEQ_CLS", "TOKEN_CLS", "SEQ_2_SEQ_LM", "QUESTION_ANS", "FEATURE_EXTRACTION", "NOTHING_KNOWN"):
    case(f"the task {_task}", with_config(task_type=_task), "task-differs", NEVER)
case(
    "a classifier of another method", with_config(peft_type="IA3", task_type="SEQ_CLS"), "not-lora task-differs", NEVER
)
case("no task", without("task_type"), "", FINE)
case("a setting that is not known", with_config(nvfp4_merge_aware={"a": 1}), "setting-unknown", UNKNOWN)
case("a setting that is not known and off", with_config(nvfp4_merge_aware=None), "", FINE)
case("MonteCLoRA", with_config(monteclora_config={"a": 1}), "setting-unknown", UNKNOWN)
case("no base", write, "base-not-given", UNKNOWN, "")
case(
    "no base and no names",
    renamed(lambda n: f"module.{n}"),
    "base-not-given wrapper-in-names",
    "unknown after repair: names",
    "",
)

# Experts
case("experts in one tensor", fused(), "", FINE, "gptoss")
case("experts in one tensor, rsLoRA", fused(use_rslora=True), "", FINE, "gptoss")
case(
    "experts in one tensor, by pattern",
    fused(alpha_pattern={"down_proj": 3}, rank_pattern={"experts.gate_up_proj": 8}),
    "uneven-layers",
    FINE,
    "gptoss",
)
case("experts in one tensor, of another rank", fused(rank=4), "experts-differ", NEVER, "gptoss")
case(
    "experts in one tensor, of a rank that cannot be",
    fused(rank=5),
    "rank-not-configured experts-differ",
    NEVER,
    "gptoss",
)
case("experts in one tensor, of nine", fused(rows=72), "experts-differ", NEVER, "gptoss")
case(
    "experts in one tensor, too narrow",
    fused(lambda t: {n: v[:, :-2] if n.endswith("experts.lora_A.weight") else v for n, v in t.items()}),
    "tensor-too-small",
    NEVER,
    "gptoss",
)
case(
    "experts in one tensor, gate alone",
    fused(lambda t: {n: v for n, v in t.items() if "base_layer" not in n}),
    "experts-missing",
    NEVER,
    "gptoss",
)
case(
    "experts in one tensor, of parameters that nobody knows",
    fused(target_parameters=["experts.one", "experts.other"]),
    "parameter-unknown",
    UNKNOWN,
    "gptoss",
)
case("experts in one tensor, where vLLM has each", fused(), "experts-fused", MERGE, "moe")
case("experts one by one", one_by_one(), "", FINE, "moe")
case("experts one by one, rsLoRA", one_by_one(config={"use_rslora": True}), "", FINE, "moe")
case("experts one by one, where vLLM has them in one", one_by_one(), "experts-apart", NEVER, "gptoss")
case(
    "expert 9 of 4",
    one_by_one(lambda t: {n.replace("experts.3", "experts.9"): v for n, v in t.items()}),
    "layer-missing experts-missing",
    NEVER,
    "moe",
)
case(
    "experts one by one, one of them left out",
    one_by_one(lambda t: {n: v for n, v in t.items() if "experts.2.up_proj" not in n}),
    "experts-missing",
    NEVER,
    "moe",
)
case(
    "experts one by one, too narrow",
    one_by_one(lambda t: {n: v[:, :-2] if "experts.2.up_proj.lora_A" in n else v for n, v in t.items()}),
    "tensor-too-small",
    NEVER,
    "moe",
)
case(
    "experts one by one, of two ranks",
    one_by_one(
        lambda t: {n: (v[:4] if "lora_A" in n else v[:, :4]) if "experts.2.up_proj" in n else v for n, v in t.items()},
        config={"rank_pattern": {"experts.2.up_proj": 4}},
    ),
    "experts-uneven uneven-layers",
    NEVER,
    "moe",
)

# What was left of the start
case("PiSSA", with_config(init_lora_weights="pissa"), "start-left-in", mending("plain-start"))
case("OLoRA", with_config(init_lora_weights="olora"), "start-left-in", mending("plain-start"))
case(
    "OLoRA on Conv1D",
    lambda d: write(d, modules=GPT2, stack="transformer.h", only=("c_attn",), config={"init_lora_weights": "olora"}),
    "base-takes-no-lora start-left-in",
    NEVER,
    "gpt2",
)
case("fast PiSSA", with_config(init_lora_weights="pissa_niter_4"), "start-left-in", NEVER)
case("CorDA", with_config(init_lora_weights="corda"), "start-left-in", NEVER)
case("LoftQ", with_config(init_lora_weights="loftq"), "start-left-in", NEVER)
case("a start nobody knows", with_config(init_lora_weights="fancy"), "start-unknown", NEVER)

# Names
case("no prefix", renamed(lambda n: n.removeprefix("base_model.model.")), "prefix-missing", mending("names"))
case("prefix twice", renamed(lambda n: f"base_model.model.{n}"), "prefix-doubled", mending("names"))
case("DDP", renamed(lambda n: f"module.{n}"), "wrapper-in-names", mending("names"))
case(
    "DDP inside",
    renamed(lambda n: n.replace("base_model.model.", "base_model.model.module.")),
    "wrapper-in-names",
    mending("names"),
)
case("torch.compile", renamed(lambda n: f"_orig_mod.{n}"), "wrapper-in-names", mending("names"))
case(
    "FSDP",
    renamed(
        lambda n: n.replace(".self_attn", "._fsdp_wrapped_module.self_attn").replace(
            ".mlp", "._fsdp_wrapped_module.mlp"
        )
    ),
    "wrapper-in-names",
    mending("names"),
)
case(
    "the adapter's name",
    renamed(lambda n: n.replace(".weight", ".default.weight")),
    "adapter-in-names",
    mending("names"),
)
case("no .weight", renamed(lambda n: n.removesuffix(".weight")), "adapter-in-names", mending("names"))
case(
    "all of these",
    renamed(lambda n: n.replace("base_model.model.", "module._orig_mod.").replace(".weight", ".default.weight")),
    "prefix-missing wrapper-in-names adapter-in-names",
    mending("names"),
)
case(
    "trained on the body alone",
    renamed(lambda n: n.replace(".model.model.", ".model.")),
    "module-misnamed",
    mending("names"),
)
case(
    "DDP and DoRA",
    with_tensors(lambda t: {f"module.{n}": v for n, v in t.items()}, config={"use_dora": True}),
    "wrapper-in-names dora",
    "servable after repair: names, then convert",
)
case("two adapters in one file", with_tensors(_twins), "adapter-in-names tensors-twice", NEVER)
case(
    "kohya's names",
    renamed(
        lambda n: (
            n.replace("base_model.model.", "lora_unet_").replace("lora_A", "lora_down").replace("lora_B", "lora_up")
        )
    ),
    "tensors-unknown no-lora-weights",
    NEVER,
)
case(
    "MLX's names",
    renamed(
        lambda n: (
            n.removeprefix("base_model.model.").replace("lora_A.weight", "lora_a").replace("lora_B.weight", "lora_b")
        )
    ),
    "tensors-unknown no-lora-weights",
    NEVER,
)
case("a tensor from elsewhere", adding({"model.norm.weight": (HIDDEN,)}), "tensors-unknown", NEVER)
case("no tensors", with_tensors(lambda tensors: {}), "no-lora-weights", NEVER)
case("targets left out", with_config(target_modules=["q_proj", "v_proj"]), "tensors-untargeted", mending("settings"))
case("no targets", with_config(target_modules=None), "targets-missing", mending("settings"))
case("targets that are a number", with_config(target_modules=7), "targets-invalid", mending("settings"))

# Shapes
case(
    "a wider base", lambda d: write(d, modules={n: (2 * i, 2 * o) for n, (i, o) in LLAMA.items()}), "wrong-base", NEVER
)
case(
    "a narrower base",
    lambda d: write(d, modules={n: (i // 2, o // 2) for n, (i, o) in LLAMA.items()}),
    "wrong-base",
    NEVER,
)
case(
    "another family",
    lambda d: write(d, modules=GPT2, stack="transformer.h", only=("c_attn", "c_fc")),
    "wrong-base",
    NEVER,
)
case("apart, where the base is fused", lambda d: write(d, only=("q_proj", "gate_proj")), "wrong-base", NEVER, "phi3")
case("more layers than the base", with_tensors(_seven), "layer-missing", NEVER)
case(
    "one matrix too small",
    setting("q_proj.lora_A.weight", lambda v: v[:, : HIDDEN // 2], where=Q0),
    "tensor-too-small",
    NEVER,
)
case("one matrix too large", setting("v_proj.lora_B.weight", lambda v: np.tile(v, (2, 1))), "tensor-too-large", NEVER)
case("the other way round", setting(".weight", np.transpose), "tensor-transposed", NEVER)
case(
    "A alone the other way round",
    setting("lora_A.weight", np.transpose, where=Q0),
    "tensor-transposed",
    NEVER,
)
case(
    "inputs for outputs",
    lambda d: write(d, modules={n: (o, i) for n, (i, o) in LLAMA.items()}, only=("v_proj", "down_proj")),
    "tensor-transposed",
    NEVER,
)
case(
    "Conv1D",
    lambda d: write(d, modules=GPT2, stack="transformer.h", only=("c_attn", "c_fc")),
    "base-takes-no-lora",
    MERGE,
    "gpt2",
)
case(
    "Conv1D, inputs for outputs",
    lambda d: write(
        d, modules={n: (o, i) for n, (i, o) in GPT2.items()}, stack="transformer.h", only=("c_attn", "c_fc")
    ),
    "base-takes-no-lora tensor-transposed",
    NEVER,
    "gpt2",
)
case(
    "A without B",
    with_tensors(lambda t: {n: v for n, v in t.items() if not (Q0 in n and "lora_B" in n)}),
    "half-pair",
    NEVER,
)
case(
    "B without A",
    with_tensors(lambda t: {n: v for n, v in t.items() if not (Q0 in n and "lora_A" in n)}),
    "half-pair",
    NEVER,
)
case("A and B of two ranks", setting("lora_B.weight", lambda v: v[:, :4], where=Q0), "ranks-differ", NEVER)
case("another rank than was told", with_config(r=16), "rank-not-configured", NEVER)
case("shards that were not gathered", setting(".weight", lambda v: v[:0].ravel()), "tensor-empty", NEVER)
case(
    "embeddings on Qwen2",
    adding(_EMBEDDED, target_modules=[*_TARGETS, "embed_tokens"]),
    "embeddings-not-served",
    MERGE,
    "qwen2",
)
case(
    "lm_head on Qwen2", adding(_HEADED, target_modules=[*_TARGETS, "lm_head"]), "embeddings-not-served", MERGE, "qwen2"
)
case("lm_head on a body", adding(_HEADED, target_modules=[*_TARGETS, "lm_head"]), "layer-missing", NEVER, "headless")
case(
    "another vocabulary",
    adding(
        {**_EMBEDDED, "model.embed_tokens.lora_embedding_A": (8, VOCABULARY + 8)},
        target_modules=[*_TARGETS, "embed_tokens"],
    ),
    "vocabulary-differs",
    NEVER,
)
case(
    "a head of another vocabulary",
    adding({**_HEADED, "lm_head.lora_B.weight": (VOCABULARY - 8, 8)}, target_modules=[*_TARGETS, "lm_head"]),
    "vocabulary-differs",
    NEVER,
)

case(
    "a head kept beside that was trained",
    copied("lm_head", change=lambda t: t.update({n: v + 1 for n, v in t.items()})),
    "copy-differs",
    MERGE,
)
case(
    "embeddings kept beside of another vocabulary",
    copied("model.embed_tokens", change=lambda t: t.update({n: v[:-8] for n, v in t.items()})),
    "copy-differs",
    MERGE,
)
case(
    "whole embeddings of another vocabulary",
    adding({"model.embed_tokens.weight": (VOCABULARY + 8, HIDDEN), "lm_head.weight": (VOCABULARY + 8, HIDDEN)}),
    "embeddings-whole",
    MERGE,
)
case("embeddings kept beside in 8 bits", copied("lm_head", dtype=np.int8), "copy-unread", UNKNOWN)

case(
    "a base whose files tell no shapes",
    lambda d: write(d, modules=PHI3, only=("qkv_proj",)),
    "shape-unheld",
    UNKNOWN,
    "packed",
)

# Values
case("NaN", setting("lora_B.weight", lambda v: v * np.nan, where=Q0), "not-finite", NEVER)
case("infinity", setting("lora_A.weight", lambda v: v + np.inf, where=Q0), "not-finite", NEVER)
case("every B zero", setting("lora_B.weight", np.zeros_like), "no-effect", NEVER)
case("every A zero", setting("lora_A.weight", np.zeros_like), "no-effect", NEVER)
case("whole numbers", setting("", lambda v: (v * 100).astype(np.int8)), "dtype-unusual", NEVER)

# Files
case("pickled", with_files(_pickled), "weights-pickled", NEVER)
case(
    "in pieces",
    with_files(lambda d: (d / WEIGHTS).rename(d / "adapter_model-00001-of-00002.safetensors")),
    "weights-sharded",
    NEVER,
)
case("GGUF", with_files(lambda d: (d / WEIGHTS).rename(d / "adapter.gguf")), "weights-missing", NEVER)
case("cut off in the data", with_bytes(lambda data: data[:-100]), "weights-unreadable", NEVER)
case("cut off in the header", with_bytes(lambda data: data[:100]), "weights-unreadable", NEVER)
case("empty", with_bytes(lambda data: b""), "weights-unreadable", NEVER)
case("bytes after the end", with_bytes(lambda data: data + bytes(8)), "weights-unreadable", NEVER)
case(
    "a header of 2^60 bytes", with_bytes(lambda data: struct.pack("<Q", 2**60) + data[8:]), "weights-unreadable", NEVER
)
case("a header that is no JSON", with_bytes(lambda data: data[:8] + b"?" + data[9:]), "weights-unreadable", NEVER)
case(
    "a header nested without end",
    with_bytes(lambda data: struct.pack("<Q", 100000) + b"[" * 100000),
    "weights-unreadable",
    NEVER,
)
case("a name twice", with_bytes(_twice), "weights-unreadable", NEVER)
case(
    "tensors over one another",
    with_header(lambda h: h[_FIRST].update(data_offsets=[4, 4 + 4 * 8 * HIDDEN])),
    "weights-unreadable",
    NEVER,
)
case("a gap", with_header(lambda h: h.pop(_FIRST)), "weights-unreadable", NEVER)
case(
    "another size than the shape's",
    with_header(lambda h: h[_FIRST].update(shape=[8, HIDDEN + 1])),
    "weights-unreadable",
    NEVER,
)
case("a shape below zero", with_header(lambda h: h[_FIRST].update(shape=[-8, -HIDDEN])), "weights-unreadable", NEVER)
case("a dtype nobody knows", with_header(lambda h: h[_FIRST].update(dtype="F12")), "weights-unreadable", NEVER)
case("an entry that is a number", with_header(lambda h: h.update({_FIRST: 3})), "weights-unreadable", NEVER)
case("a link that leads out", with_files(_linked), "link-leads-out", NEVER)
case("a manifest that leads out", _manifest("../../etc/passwd"), "manifest-leads-out", NEVER)
case("files changed since the manifest", with_files(_changed_since), "manifest-broken", NEVER)
case("no configuration", with_files(lambda d: (d / CONFIG).unlink()), "no-config", NEVER)
case("a merged model", with_files(lambda d: (d / CONFIG).rename(d / "config.json")), "whole-model", NEVER)
case("a configuration that is no JSON", with_files(lambda d: (d / CONFIG).write_text("{")), "config-unreadable", NEVER)
case("a configuration that is a list", with_files(lambda d: (d / CONFIG).write_text("[]")), "config-unreadable", NEVER)
case(
    "a configuration of other bytes",
    with_files(lambda d: (d / CONFIG).write_bytes(b"\xff\xfe{}")),
    "config-unreadable",
    NEVER,
)


def main() -> None:
    """Print what the doctor says of every one."""
    with tempfile.TemporaryDirectory() as scratch:
        bases = make_bases(Path(scratch) / "bases")
        for number, ailing in enumerate(CASES):
            found = ailing.examine(Path(scratch) / str(number), bases)
            codes = ", ".join(finding.code for finding in found.findings)
            sys.stdout.write(f"{ailing.name:38} {found.verdict:38} {codes}{os.linesep}")


if __name__ == "__main__":
    main()
