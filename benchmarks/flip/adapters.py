"""Adapters made without training: random LoRA weights, large enough that every version has words of its own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save_file

from loradock.registry import versions
from loradock.registry.artifact import CONFIG, WEIGHTS
from loradock.registry.base import LocalBase
from loradock.registry.records import Version
from loradock.registry.refs import VersionRef
from loradock.registry.store import Store

Kind = Literal["good", "damaged", "no effect"]

FLIPPED = ("alpha", "beta")
"""Names whose alias moves."""
STEADY = ("gamma", "delta")
"""Names that stay at their only version."""

_STD = 0.2
"""Of B: it changes what the base says, and leaves the two best tokens far enough apart to compare greedy words."""
_LOST = 65536
"""Bytes of a damaged file that read as zero, as a lost block of a disk does."""


@dataclass(frozen=True, slots=True)
class Made:
    """A version with a directory of its files, which is what vLLM's own routes take."""

    name: str
    number: int
    kind: Kind
    directory: Path

    def __str__(self) -> str:
        return f"{self.name}/{self.number}"


Cast = Mapping[str, tuple[Made, ...]]
"""Every version by its name, good ones first."""


def of_kind(cast: Cast, name: str, kind: Kind) -> list[Made]:
    """A name's versions of one kind, lowest number first."""
    return [made for made in cast[name] if made.kind == kind]


def make(local: LocalBase, into: Path, *, good: int, rank: int, seed: int) -> Cast:
    """Write every version: `good` of each name that moves, with a damaged one and one without effect, and the others.

    One of the two without effect has an all-zero B, which the file shows; the other's B is so small that only a
    measurement shows it.
    """
    cast: dict[str, tuple[Made, ...]] = {}
    for turn, name in enumerate((*FLIPPED, *STEADY)):
        kinds: list[Kind] = [*["good"] * good, "damaged", "no effect"] if name in FLIPPED else ["good"]  # type: ignore[list-item]
        cast[name] = tuple(Made(name, number, kind, into / f"{name}-{number}") for number, kind in enumerate(kinds, 1))
        for made in cast[name]:
            std = _STD if made.kind != "no effect" else 0.0 if turn == 0 else 1e-12
            _write(made.directory, local, rank=rank, std=std, seed=[seed, turn, made.number])
    return cast


def _write(directory: Path, local: LocalBase, *, rank: int, std: float, seed: list[int]) -> None:
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(int(local.config["num_hidden_layers"])):
        for module, (wide, out) in _linear(local.config).items():
            stem = f"base_model.model.model.layers.{layer}.{module}"
            bound = 1 / math.sqrt(wide)
            tensors[f"{stem}.lora_A.weight"] = random.uniform(-bound, bound, (rank, wide)).astype(np.float32)
            tensors[f"{stem}.lora_B.weight"] = (std * random.standard_normal((out, rank))).astype(np.float32)
    directory.mkdir(parents=True)
    save_file(tensors, directory / WEIGHTS)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": local.base.id,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted(module.rpartition(".")[2] for module in _linear(local.config)),
        "bias": "none",
    }
    (directory / CONFIG).write_text(json.dumps(config), encoding="utf-8")


def _linear(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """A Llama's linear modules, each with its width in and out."""
    hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    heads = hidden * int(config["num_key_value_heads"]) // int(config["num_attention_heads"])
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, heads),
        "self_attn.v_proj": (hidden, heads),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }


def register(store: Store, local: LocalBase, cast: Cast) -> list[Version]:
    """Make versions of them all in a registry."""
    every = [made for several in cast.values() for made in several]
    found = [versions.import_directory(store, made.directory, local, made.name) for made in every]
    assert [str(version.ref) for version in found] == [str(made) for made in every]
    return found


def damage(store: Store, cast: Cast) -> None:
    """Change the bytes of the versions that are to be damaged, in the store and in the directory."""
    for made in (made for name in FLIPPED for made in of_kind(cast, name, "damaged")):
        _lose(made.directory / WEIGHTS)
        model = store.version(VersionRef(made.name, made.number)).source.removeprefix("models:/")
        _lose(next(store.settings.artifacts.rglob(f"{model}/artifacts/{WEIGHTS}")))


def _lose(path: Path) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(_LOST))
