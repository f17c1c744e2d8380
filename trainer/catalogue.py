"""The methods that a recipe can name: PEFT's own, the known ways to set up LoRA, and full fine-tuning.

Nothing here imports PEFT, so that a misspelled method is told before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final


class Served(StrEnum):
    """How vLLM can answer with what a method trains."""

    AS_IS = "as it is"
    CONVERTED = "after conversion to LoRA"
    MERGED = "merged only"
    NOT = "not by vLLM"


@dataclass(frozen=True, slots=True)
class Entry:
    """One method, as `loradock methods` tells it."""

    title: str
    paper: str
    """A URL; PEFT's documentation where the method has no paper."""
    served: Served
    learning_rate: float = 2e-4
    """The recipe's default. A method that changes little per weight takes larger steps."""
    peft_type: str = ""
    """PEFT's type in lower case, where the name is another."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the name stands for beyond the type, in PEFT's words."""
    quantized: bool = False
    """Whether the name asks for a base in 4 bits."""
    checkpoints: bool = True
    """Whether activations can be computed again in the backward pass."""


_ARXIV: Final = "https://arxiv.org/abs/"
_PEFT: Final = "https://huggingface.co/docs/peft/package_reference/"

FULL: Final = "full"
"""Full fine-tuning, for comparison: it trains every weight and leaves no adapter."""

FROM_BASE: Final = ("pissa", "olora")
"""The starts of LoRA that take a part out of the base, which is put back when the adapter is saved."""

QUANTIZED: Final = ("lora", "adalora", "ia3", "hira", "pvera", "randlora", "road")
"""PEFT's types that have layers of their own for bitsandbytes' quantised ones."""
PROMPTS: Final = ("prompt_tuning", "p_tuning", "prefix_tuning", "cartridge", "cpt", "multitask_prompt_tuning")
"""PEFT's types that put something before the text and leave the weights alone."""

ENTRIES: Final[Mapping[str, Entry]] = {
    # LoRA, and the names that stand for a way of setting it up
    "lora": Entry("Low-rank adaptation", _ARXIV + "2106.09685", Served.AS_IS),
    "qlora": Entry("LoRA on a base in 4 bits", _ARXIV + "2305.14314", Served.AS_IS, peft_type="lora", quantized=True),
    "rslora": Entry(
        "LoRA scaled by the root of the rank",
        _ARXIV + "2312.03732",
        Served.AS_IS,
        peft_type="lora",
        settings={"use_rslora": True},
    ),
    "dora": Entry(
        "LoRA of direction, with a magnitude",
        _ARXIV + "2402.09353",
        Served.CONVERTED,
        peft_type="lora",
        settings={"use_dora": True},
    ),
    "pissa": Entry(
        "LoRA from the base's principal singular vectors",
        _ARXIV + "2404.02948",
        Served.AS_IS,
        peft_type="lora",
        settings={"init_lora_weights": "pissa"},
    ),
    "olora": Entry(
        "LoRA from a QR decomposition of the base",
        _ARXIV + "2406.01775",
        Served.AS_IS,
        peft_type="lora",
        settings={"init_lora_weights": "olora"},
    ),
    "loftq": Entry(
        "LoRA that starts from the error of the 4-bit base",
        _ARXIV + "2310.08659",
        Served.AS_IS,
        peft_type="lora",
        settings={"init_lora_weights": "loftq"},
        quantized=True,
    ),
    # PEFT's other types, in alphabetical order
    "adalora": Entry("LoRA with ranks that move to where they help", _ARXIV + "2303.10512", Served.CONVERTED, 1e-3),
    "adamss": Entry(
        "Adaptive subspaces of singular vectors", "https://neurips.cc/virtual/2025/poster/119606", Served.MERGED, 1e-3
    ),
    "adaption_prompt": Entry(
        "LLaMA-Adapter: gated prompts in the upper layers", _ARXIV + "2303.16199", Served.NOT, 5e-3
    ),
    "beft": Entry("Bias-efficient fine-tuning", _ARXIV + "2509.15974", Served.MERGED, 1e-3),
    "boft": Entry("Orthogonal butterfly factors", _ARXIV + "2311.06243", Served.MERGED),
    "c3a": Entry("Circular convolution", _ARXIV + "2407.19342", Served.CONVERTED, 1e-1),
    "cartridge": Entry("A trained key-value cache", _ARXIV + "2506.06266", Served.NOT, 1e-2, checkpoints=False),
    "cpt": Entry("Context-aware prompt tuning", _ARXIV + "2410.17222", Served.NOT, 1e-3),
    "deft": Entry("Decompositional efficient fine-tuning", _PEFT + "deft", Served.CONVERTED),
    "delora": Entry("LoRA with a bounded change of weights", _ARXIV + "2503.18225", Served.CONVERTED, 1e-3),
    "fourierft": Entry("A sparse spectrum of the weights' change", _ARXIV + "2405.03003", Served.MERGED, 3e-2),
    "frod": Entry(
        "Rotations with a sparse, shared projection", "https://doi.org/10.1609/aaai.v40i31.39813", Served.MERGED, 1e-3
    ),
    "glora": Entry("Generalised LoRA", _ARXIV + "2306.07967", Served.MERGED),
    "gralora": Entry("LoRA in blocks", _ARXIV + "2505.20355", Served.CONVERTED),
    "hira": Entry(
        "Hadamard product of base and low rank", "https://openreview.net/forum?id=TwJrTz9cRS", Served.CONVERTED
    ),
    "hra": Entry("Householder reflections", _ARXIV + "2405.17484", Served.CONVERTED, 1e-3),
    "ia3": Entry("Learned scales of keys, values and the MLP", _ARXIV + "2205.05638", Served.MERGED, 5e-3),
    "lily": Entry("Low-rank factors shared between layers", _ARXIV + "2407.09946", Served.MERGED),
    "ln_tuning": Entry("The layer norms alone", _ARXIV + "2312.11420", Served.MERGED, 1e-3),
    "loha": Entry("Hadamard product of two low ranks", _ARXIV + "2108.06098", Served.CONVERTED),
    "lokr": Entry("Kronecker product of small factors", _ARXIV + "2309.14859", Served.CONVERTED, 1e-3),
    "miss": Entry("Shards of the input, summed (Bone)", _ARXIV + "2409.15371", Served.CONVERTED),
    "multitask_prompt_tuning": Entry("A prompt shared by tasks", _ARXIV + "2303.02861", Served.NOT, 1e-2),
    "oft": Entry("Orthogonal fine-tuning", _ARXIV + "2306.07280", Served.MERGED),
    "osf": Entry("Orthogonal subspaces of the base's own SVD", _ARXIV + "2504.07097", Served.MERGED, 5e-5),
    "p_tuning": Entry("A prompt from a small encoder", _ARXIV + "2103.10385", Served.NOT, 1e-3),
    "peanut": Entry("A small network that makes the weights' change", _ARXIV + "2410.01870", Served.CONVERTED),
    "poly": Entry("LoRA skills mixed by task", _ARXIV + "2202.13914", Served.NOT, checkpoints=False),
    "prefix_tuning": Entry(
        "Trained keys and values before the text", _ARXIV + "2101.00190", Served.NOT, 1e-2, checkpoints=False
    ),
    "prompt_tuning": Entry("Trained tokens before the text", _ARXIV + "2104.08691", Served.NOT, 3e-2),
    "psoft": Entry("Orthogonal fine-tuning in principal subspaces", _ARXIV + "2505.11235", Served.CONVERTED),
    "pvera": Entry("Probabilistic VeRA", _ARXIV + "2512.07703", Served.CONVERTED, 5e-3),
    "randlora": Entry("Full rank out of random bases", _ARXIV + "2502.00987", Served.CONVERTED, 1e-3),
    "road": Entry("Rotations in pairs of dimensions", _ARXIV + "2409.00119", Served.MERGED, 1e-3),
    "shadow": Entry("A small network beside the base", _PEFT + "shadow", Served.NOT),
    "shira": Entry("A sparse change of weights", _ARXIV + "2406.13175", Served.MERGED),
    "supertuning": Entry("A sparse set of the base's own weights", _ARXIV + "2607.09287", Served.MERGED),
    "tinylora": Entry("A handful of weights over a frozen SVD", _ARXIV + "2602.04118", Served.CONVERTED, 1e-3),
    "trainable_tokens": Entry("Embeddings of chosen tokens", _PEFT + "trainable_tokens", Served.MERGED, 1e-3),
    "unilora": Entry("One vector for all layers", _ARXIV + "2506.00799", Served.CONVERTED, 5e-3),
    "vblora": Entry("Vectors from a shared bank", _ARXIV + "2405.15179", Served.CONVERTED, 1e-2),
    "vera": Entry("Shared random projections, scaled by vectors", _ARXIV + "2310.11454", Served.CONVERTED, 5e-3),
    "waveft": Entry("A sparse set of wavelet coefficients", _ARXIV + "2505.12532", Served.MERGED, 1e-2),
    "xlora": Entry("A learned mixture of LoRA adapters", _ARXIV + "2402.07148", Served.NOT, checkpoints=False),
    FULL: Entry("Full fine-tuning, for comparison", _ARXIV + "1801.06146", Served.NOT, 2e-5),
}
"""Every method by the name that a recipe gives it."""
