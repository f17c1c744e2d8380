"""A merge on the whole model in memory, by PEFT itself: for what cannot be merged a module at a time.

That are weights that transformers joins when it loads them, such as experts, and embeddings of a resized vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from loradock.registry.base import LocalBase
from loradock.registry.errors import LoradockError, first_line
from loradock.trainer.weights.layers import FAULTS, Source, filled, worn
from loradock.trainer.weights.shards import DTYPES


def merge(local: LocalBase, adapter: Path, source: Source | None, out: Path, dtype: str) -> None:
    """Write an adapter merged into its base, whose weights `source` gives, by default its own files do.

    The files are transformers' own, and bear the names that the base's files have.
    """
    model = worn(filled(local, source, adapter), adapter)
    _part(model.get_base_model())
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except FAULTS as error:
        raise LoradockError(f"PEFT cannot merge the adapter: {first_line(error)}") from error
    _join(merged)
    save(merged.to(DTYPES[dtype]), out)


def save(model: Any, out: Path) -> None:
    """Write a model's weights and configuration; its generation configuration is the base's, and is copied."""
    model.generation_config = GenerationConfig()  # transformers refuses to save some that it loads
    model.save_pretrained(out)


def _part(model: Any) -> None:
    """Give the head weights of its own, where it has those of the embeddings: what one gets, the other does not."""
    head, embeddings = _ends(model)
    if head is not None and head.weight is embeddings.weight:
        head.weight = nn.Parameter(head.weight.data.clone(), requires_grad=False)


def _join(model: Any) -> None:
    """Let head and embeddings be one again where they are equal, and say that they are not where they differ."""
    text = model.config.get_text_config()
    head, embeddings = _ends(model)
    if head is None or not text.tie_word_embeddings:
        return
    if torch.equal(head.weight, embeddings.weight):
        head.weight = embeddings.weight
    else:
        model.config.tie_word_embeddings = text.tie_word_embeddings = False


def _ends(model: Any) -> tuple[Any, Any]:
    """The modules that hold the head's weight and the embeddings', below what PEFT puts around them."""
    found = []
    for module in (model.get_output_embeddings(), model.get_input_embeddings()):
        inner = module
        for part in ("token_adapter", "original_module", "base_layer"):
            inner = getattr(inner, part, inner)
        found.append(inner)
    return found[0], found[1]
