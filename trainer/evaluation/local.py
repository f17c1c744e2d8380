"""Measuring by transformers and PEFT in this process: one base in memory, which wears one adapter at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch.nn.functional import cross_entropy

from loradock.registry.base import LocalBase
from loradock.registry.errors import LoradockError
from loradock.registry.evidence import Subject
from loradock.trainer import base, meta, methods
from loradock.trainer.evaluation.heldout import Item
from loradock.trainer.evaluation.scorer import Step
from loradock.trainer.generation import generate
from loradock.trainer.recipe import Recipe
from loradock.trainer.weights.layers import restore, worn

_TOKENS: Final = 4096  # in a batch, padding included
_ROWS: Final = 16
_PROBE: Final = 16


class Local:
    """A base in memory and the directories of adapters, whose bytes were verified."""

    def __init__(self, local: LocalBase, recipe: Recipe, adapters: Mapping[Subject, Path]) -> None:
        self._local, self._recipe, self._adapters = local, recipe, adapters
        self._wears: Subject = "base"
        self._load()
        self._probe = self._answer_of_base()

    @property
    def tokenizer(self) -> Any:
        """The base's."""
        return self._loaded.tokenizer

    @property
    def max_length(self) -> int:
        """Tokens that the base was made to read."""
        return meta.longest(self._bare.config)

    @property
    def dtype(self) -> str:
        """The precision of what is not quantised."""
        return str(self._loaded.dtype).removeprefix("torch.")

    def nats(self, subject: Subject, items: Sequence[Item], step: Step) -> list[float]:
        """The loss of each example, summed over the tokens of its completion, in nats.

        Raises LoradockError for a loss that is no finite number.
        """
        self._wear(subject)
        found = [0.0] * len(items)
        for batch in _batches([len(item.tokens.input_ids) for item in items]):
            for index, value in zip(batch, self._nats([items[index] for index in batch]), strict=True):
                found[index] = value
            step(len(batch))
        if not all(map(math.isfinite, found)):
            raise LoradockError(f"the loss of the {subject} is no finite number", hint="look at it: loradock check")
        return found

    def answers(self, subject: Subject, items: Sequence[Item], new_tokens: int, step: Step) -> list[str]:
        """What is said to each prompt, greedily, in at most so many tokens."""
        self._wear(subject)
        found = [""] * len(items)
        for batch in _batches([len(item.prompt) + new_tokens for item in items]):
            prompts = [items[index].prompt for index in batch]
            extra = self._extra(len(batch), cache=True)
            with self._precision():
                said = generate(self._model, self.tokenizer, prompts, new_tokens, **extra)
            for index, text in zip(batch, said, strict=True):
                found[index] = text
            step(len(batch))
        return found

    def _nats(self, items: Sequence[Item]) -> list[float]:
        longest = max(len(item.tokens.input_ids) for item in items)
        pad = self.tokenizer.pad_token_id
        device = self._model.device
        ids = torch.tensor([_padded(item.tokens.input_ids, longest, pad) for item in items], device=device)
        mask = torch.tensor([_padded([1] * len(item.tokens.input_ids), longest, 0) for item in items], device=device)
        kept = torch.tensor([_padded(item.tokens.completion_mask, longest, 0) for item in items], device=device)[:, 1:]
        with torch.inference_mode(), self._precision():
            extra = self._extra(len(items), cache=False)
            logits = self._model(input_ids=ids, attention_mask=mask, **extra).logits[:, -longest:-1]  # after any prompt
            chosen = kept.bool()
            losses = cross_entropy(logits[chosen].float(), ids[:, 1:][chosen], reduction="none")
        return [float(part.double().sum()) for part in losses.cpu().split([item.weight for item in items])]

    def _extra(self, rows: int, *, cache: bool) -> dict[str, Any]:
        """What the method's model asks for beside the tokens."""
        if self._wears == "base":
            return {"use_cache": cache}
        config = self._model.peft_config["default"]
        mixes = methods.kind_of(config) == "xlora"
        return {"use_cache": cache and not mixes, **methods.task_ids(config, rows, self._model.device)}

    def _precision(self) -> torch.autocast:
        """That of the Trainer, and of vLLM: an adapter is kept in float32, and multiplied in the base's precision."""
        low = self._loaded.dtype is not torch.float32
        return torch.autocast(self._model.device.type, dtype=self._loaded.dtype if low else None, enabled=low)

    def _load(self) -> None:
        self._loaded = base.load(self._local, self._recipe)
        self._bare = self._model = self._loaded.model.eval()

    def _wear(self, subject: Subject) -> None:
        if subject == self._wears:
            return
        if self._wears != "base":
            self._take_off()
        if subject != "base":
            self._model = worn(self._bare, self._adapters[subject], subject)
        self._wears = subject

    def _take_off(self) -> None:
        """Go back to the bare base, loaded anew after a method that leaves something behind, as a PiSSA start does."""
        unload = getattr(self._model.base_model, "unload", None)  # the prompt methods have none, and change nothing
        self._bare = self._model = (unload() if unload else self._bare).eval()
        restore(self._bare, self._local, self._adapters[self._wears])
        self._wears = "base"
        if not torch.equal(self._answer_of_base(), self._probe):
            del self._loaded, self._bare, self._model  # two might not fit
            self._load()

    def _answer_of_base(self) -> torch.Tensor:
        """The logits after the first few tokens of the vocabulary."""
        with torch.inference_mode():
            ids = torch.arange(_PROBE, device=self._model.device)[None]
            found: torch.Tensor = self._model(input_ids=ids, use_cache=False).logits
        return found


def _padded(values: Sequence[int], length: int, pad: int) -> list[int]:
    return [*values, *[pad] * (length - len(values))]


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in batches of like lengths, longest first, so that what does not fit into memory is told at once."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) == _ROWS or lengths[batch[0]] * (len(batch) + 1) > _TOKENS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
