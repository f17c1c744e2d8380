"""A trained PEFT model as the files of an adapter, in one fixed form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from registry import artifact, check
from registry.base import LocalBase
from registry.errors import LoradockError
from registry.records import Facts, Manifest


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


def facts(directory: Path, digest: str, local: LocalBase, *, run_id: str, data_digest: str) -> Facts:
    """What the registry keeps of an adapter, read from the files that were written."""
    config = check.read_config(directory)
    tensors = artifact.read_header(directory / artifact.WEIGHTS)
    return Facts(
        digest=digest,
        base=local.base,
        method=str(config["peft_type"]).lower(),
        rank=check.largest_rank(config),
        targets=tuple(sorted({name.partition(".lora_")[0].rsplit(".", 1)[-1] for name in tensors})),
        run_id=run_id,
        data_digest=data_digest,
    )
