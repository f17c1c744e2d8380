"""A trained PEFT model as the files of an adapter, in one fixed form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from loradock.registry import artifact
from loradock.registry.errors import LoradockError
from loradock.registry.records import Base, Manifest
from loradock.trainer import catalogue


def keep_start(model: Any, directory: Path) -> Path | None:
    """Save the weights that a method took out of the base before training; None for a method that took none."""
    config = model.peft_config["default"]
    start = getattr(config, "init_lora_weights", None)
    if not str(start).startswith(catalogue.FROM_BASE):
        return None
    config.init_lora_weights = True
    model.save_pretrained(directory, safe_serialization=True, save_embedding_layers=False)
    config.init_lora_weights = start
    return directory


def save(model: Any, directory: Path, base: Base, start: Path | None = None) -> Manifest:
    """Write PEFT's two files and their manifest; raises LoradockError when a weight is no finite number.

    With `start`, what was taken out of the base is put back: the adapter is then plain LoRA of twice the rank, for
    the base as it is (https://arxiv.org/abs/2404.02948, appendix C). The model card that PEFT adds is left out: it
    is no part of the adapter.
    """
    config = model.peft_config["default"]
    config.base_model_name_or_path = base.id
    config.revision = base.revision or None
    options = {"path_initial_model_for_weight_conversion": str(start)} if start else {}
    model.save_pretrained(directory, safe_serialization=True, save_embedding_layers=False, **options)
    for path in directory.iterdir():
        if path.name not in (artifact.CONFIG, artifact.WEIGHTS) and path.is_file():
            path.unlink()
    for name, tensor in load_file(directory / artifact.WEIGHTS).items():
        if not bool(torch.isfinite(tensor).all()):
            raise LoradockError(
                f"the trained adapter holds a weight that is no finite number ({name})",
                hint="lower training.learning_rate",
            )
    artifact.canonicalise(directory)
    return artifact.write_manifest(directory)
