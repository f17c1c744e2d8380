"""Adapters in formats that loradock does not read: what they are called, and what to give in their stead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from loradock.registry.errors import BadInput


@dataclass(frozen=True, slots=True)
class Format:
    """How another tool keeps an adapter, by the names of its files."""

    title: str
    files: Sequence[str]
    """Patterns, of which one is enough."""
    hint: str


_FORMATS: Final = (
    Format(
        "an MLX adapter",
        ("adapters.safetensors", "[0-9]*_adapters.safetensors"),
        "write it as PEFT does: transpose lora_a and lora_b, and set lora_alpha to rank times scale",
    ),
    Format(
        "a LitGPT adapter",
        ("*.pth.lora",),
        "write it as PEFT does: cut the rows of attn.qkv into q_proj, k_proj and v_proj, with hyperparameters.yaml's r",
    ),
    Format(
        "an AdapterHub adapter",
        ("adapter.safetensors", "pytorch_adapter.bin"),
        "write it as PEFT does: `loras.NAME.lora_A` is PEFT's `lora_A.weight`, and `alpha` its lora_alpha",
    ),
    Format("a GGUF file", ("*.gguf",), "it was converted from PEFT's files: give the directory that holds those"),
    Format(
        "an ONNX adapter",
        ("*.onnx_adapter", "*.onnx"),
        "Olive converted it from PEFT's files: give the directory that holds those",
    ),
    Format(
        "a diffusers LoRA", ("pytorch_lora_weights.*",), "it changes an image model, and loradock takes text models"
    ),
    Format(
        "an adapter in shards",
        ("adapter_model.safetensors.index.json", "adapter_model-[0-9]*-of-*.safetensors"),
        "PEFT does not load shards either: write their tensors into one adapter_model.safetensors",
    ),
)
"""Seen in what mlx-lm 0.32, litgpt 0.5, adapters 1.3, llama.cpp, olive-ai 0.13, diffusers and Axolotl 0.19 write."""
METHODS: Final = {
    "BONE": "PEFT 0.19 took it out; scripts/convert-bone-to-miss.py of PEFT's repository makes a MISS adapter of it",
}
"""Methods that PEFT had and has no more, and what became of them."""
KEYS: Final = {
    "nvfp4_merge_aware": "Axolotl trained it to be merged into experts in NVFP4, by Axolotl itself",
}
"""Keys that others add to PEFT's configuration because the adapter does what PEFT does not, and what that is."""


def refused(path: Path) -> BadInput | None:
    """What to tell of a file, or of a directory without PEFT's two files, that another tool wrote; None if unknown."""
    names = sorted(at.name for at in path.iterdir()) if path.is_dir() else [path.name]
    for kind in _FORMATS:
        if found := next((name for name in names if any(fnmatch(name, pattern) for pattern in kind.files)), None):
            where = f"{path} holds" if path.is_dir() else f"{path} is"
            named = f", {found}" if path.is_dir() else ""
            return BadInput(f"{where} {kind.title}{named}, and loradock reads what PEFT writes", hint=kind.hint)
    return None
