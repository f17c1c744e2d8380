"""What a training's memory follows from: a base's sizes, its weights by what becomes of them, what a pass keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the memory's sums need of a base's configuration."""

    layers: int
    hidden: int
    vocabulary: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> Self:
        """Those of transformers' configuration."""
        text = config.get_text_config()
        return cls(int(text.num_hidden_layers), int(text.hidden_size), int(text.vocab_size))


@dataclass(frozen=True, slots=True)
class Counts:
    """Weights by what becomes of them; tied embeddings count once, a quantised layer as it would unquantised."""

    base: int
    trainable: int
    adapter: int
    """What the method adds: trained, or frozen beside it."""
    quantizable: int
    """Of the base's: those in the linear layers that bitsandbytes quantises."""
    largest: int
    """The largest of those layers."""
    rows_and_columns: int
    """Of all trained matrices, with the length of what is no matrix: what Adafactor keeps."""
    buffers: int
    """Bytes of what the method holds and never trains: projections, indices."""
    file: int
    """Bytes of adapter_model.safetensors; 0 for full fine-tuning, which leaves no adapter."""
    logits: bool = False
    """Whether the loss takes the whole table of logits."""

    @property
    def total(self) -> int:
        """The base's weights and the method's."""
        return self.base + self.adapter

    @property
    def share(self) -> float:
        """The part of all weights that is trained."""
        return self.trainable / self.total


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes of one batch, without the head and the loss."""

    first: int
    """What a model of one layer keeps."""
    layer: int
    """What each further layer keeps."""
    boundary: int
    """What each layer keeps under gradient checkpointing: its input (https://arxiv.org/abs/1604.06174)."""
    working: int
    """What the pass needs beyond what it keeps, at most."""
    passing: int
    """What each further layer makes and lets go of again in the forward pass."""
    like: str = ""
    """The method that was followed in place of the recipe's, where that one cannot run on shapes."""
