"""Weights that were pickled, as safetensors; torch is imported only when one is converted."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from loradock.registry.errors import LoradockError, Refused, first_line
from loradock.registry.outside import printable, quoted


def convert(path: Path, target: Path) -> None:
    """Read a pickled state dictionary and write its tensors to `target`; no code of the pickle's is run.

    It is `torch.load(weights_only=True)`, which builds tensors and plain containers alone. Raises Refused for a file
    that holds anything else, or that is damaged, and LoradockError without torch.
    """
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError as error:
        raise LoradockError(
            "pickled weights are read with torch", hint="pip install '.[train]' in a checkout of loradock"
        ) from error

    try:
        with warnings.catch_warnings(action="ignore"):  # of the pickle's protocol
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises anything
        raise _refused(path, printable(first_line(error))) from error
    if not isinstance(state, dict) or not state:
        raise _refused(path, "it is no state dictionary")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            raise _refused(path, f"{quoted(name)} is no plain tensor")
    # Copies, since two names of one storage cannot be written.
    tensors = {name: value.detach().clone().contiguous() for name, value in state.items()}
    save_file(tensors, target, metadata={"format": "pt"})


def _refused(path: Path, why: str) -> Refused:
    return Refused(
        f"{path.name} is not the tensors of an adapter alone, and nothing of it was run ({why})",
        hint="ask its author for adapter_model.safetensors",
    )
