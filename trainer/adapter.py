"""A trained PEFT model as the files of an adapter, in one fixed form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from registry import artifact
from registry.base import LocalBase
from registry.errors import LoradockError
from registry.records import Manifest


def save(model: Any, directory: Path, local: LocalBase) -> Manifest:
    """Write PEFT's two files and their manifest; raises LoradockError when a weight is no finite number.

    The model card that PEFT adds is left out: it is no part of the adapter.
    """
    config = model.peft_config["default"]
    config.base_model_name_or_path = local.base.id
    config.revision = local.base.revision or None
    model.save_pretrained(directory, safe_serialization=True, save_embedding_layers=False)
    for path in directory.iterdir():
        if path.name not in (artifact.CONFIG, artifact.WEIGHTS):
            path.unlink()
    for name, tensor in load_file(directory / artifact.WEIGHTS).items():
        if not bool(torch.isfinite(tensor).all()):
            raise LoradockError(
                f"the trained adapter holds a weight that is no finite number ({name})",
                hint="lower training.learning_rate",
            )
    artifact.canonicalise(directory)
    return artifact.write_manifest(directory)
