"""LoftQ's start: LoRA weights that make up for what a 4-bit base lost (https://arxiv.org/abs/2310.08659).

One round of the paper's algorithm, with the quantised base as it is: the adapter then fits every copy of that base.
PEFT's own routine does the same sums on CUDA alone, and leaves out the scale that LoRA multiplies by.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

import bitsandbytes.functional
import torch
from peft.tuners.lora import Linear4bit
from safetensors import safe_open

from loradock.registry.errors import BadInput
from loradock.registry.outside import weight_map

_PREFIX: Final = "base_model.model."


def start(model: Any, directory: Path, adapter: str = "default") -> float:
    """Set every LoRA pair on a 4-bit layer to the best low-rank copy of that layer's quantisation error.

    `directory` holds the base's safetensors. Returns the share of the error that is left, by Frobenius norm over all
    layers. Raises BadInput when a layer's weights are not in the base's files.
    """
    before = after = 0.0
    with torch.no_grad(), _Weights(directory) as weights:
        for name, layer in model.named_modules():
            if not isinstance(layer, Linear4bit):
                continue
            held = layer.get_base_layer().weight
            error = weights.read(f"{name.removeprefix(_PREFIX)}.weight").to(held.device, torch.float32)
            error -= bitsandbytes.functional.dequantize_4bit(held.data, held.quant_state).float()
            rank, scale = layer.r[adapter], layer.scaling[adapter]
            left, sizes, right = torch.linalg.svd(error, full_matrices=False)
            root = (sizes[:rank] / scale).sqrt()
            layer.lora_A[adapter].weight.copy_(root[:, None] * right[:rank])
            layer.lora_B[adapter].weight.copy_(left[:, :rank] * root)
            before += float(sizes.square().sum())
            after += float(sizes[rank:].square().sum())
    return (after / before) ** 0.5 if before else 0.0


class _Weights:
    """The tensors of a model's safetensors files, each read when it is asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self._files = weight_map(directory) or {}
        self._open: dict[Path, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, name: str) -> torch.Tensor:
        file = self._files.get(name, self._directory / "model.safetensors")
        if file not in self._open:
            self._open[file] = self._stack.enter_context(safe_open(file, framework="pt"))
        try:
            tensor: torch.Tensor = self._open[file].get_tensor(name)
        except Exception as error:  # safetensors has no error of its own for this
            raise BadInput(f"the base's files have no {name}, which loftq compares with its 4-bit copy") from error
        return tensor
