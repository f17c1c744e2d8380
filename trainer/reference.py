"""What transformers and PEFT say with an adapter on its base in float32.

A replica serves the base as its files have it, whatever an adapter was trained on: what a QLoRA adapter says there is
not what its training saw, and is what it is held against.
"""

from __future__ import annotations

import importlib.metadata
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoTokenizer

from loradock.registry import machine
from loradock.registry.base import LocalBase
from loradock.registry.errors import BadInput, LoradockError, first_line
from loradock.registry.reference import ANSWER, PROMPTS, Probe, Reference
from loradock.trainer.weights.layers import filled, restore, worn
from loradock.trainer.weights.shards import Shards
from loradock.trainer.weights.speaker import streamed

_SHARE: Final = 0.8  # of the free memory that a base may take
_SOFTWARE: Final = ("peft", "torch", "transformers")


class Witness:
    """A base in float32 that wears one adapter at a time; one that does not fit into memory is read as it runs.

    Raises BadInput where it cannot be read.
    """

    def __init__(self, local: LocalBase) -> None:
        self.local = local
        try:
            tokenizer = AutoTokenizer.from_pretrained(local.path)
        except Exception as error:  # whatever its files lack
            raise BadInput(f"the tokenizer of {local.base.id} cannot be read: {first_line(error)}") from error
        prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
        shortest = min(map(len, prompts))  # cut to one length, they need no padding
        self._prompts = torch.tensor([prompt[:shortest] for prompt in prompts])
        size = Shards(local.path).size("float32")
        self._bare = filled(local) if size < _SHARE * machine.memory().available else None
        if self._bare is not None and torch.cuda.is_available() and size < _SHARE * torch.cuda.mem_get_info()[0]:
            self._bare = self._bare.to("cuda")

    def reference(self, directory: Path, digest: str) -> Reference:
        """What is said with the adapter in a directory, whose digest this is; raises LoradockError where PEFT fails."""
        model = streamed(self.local, directory) if self._bare is None else worn(self._bare, directory)
        try:
            with torch.inference_mode():
                probes = _probes(model, self._prompts)
        finally:
            if self._bare is not None:
                self._bare = model.unload()
                restore(self._bare, self.local, directory)
        return Reference(
            adapter=digest,
            base=self.local.base.weights_digest,
            config=self.local.base.config_digest,
            software={name: importlib.metadata.version(name) for name in _SOFTWARE},
            at=datetime.now(UTC),
            probes=probes,
        )


def _probes(model: Any, prompts: torch.Tensor) -> tuple[Probe, ...]:
    """The probe of each row of prompts."""
    ids = _continued(model, prompts.to(model.device))
    adapted = _logits(model, ids)
    with model.disable_adapter():
        bare = _logits(model, ids)
    start = prompts.shape[1]
    return tuple(_probe(*row, start) for row in zip(ids, adapted, bare, strict=True))


def _continued(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Rows of tokens, each followed by its greedy answer."""
    cache, new = None, ids
    for _ in range(ANSWER):
        said = model(input_ids=new, past_key_values=cache, use_cache=True)
        cache, new = said.past_key_values, said.logits[:, -1:].argmax(-1)
        ids = torch.cat([ids, new], dim=1)
    return ids


def _probe(ids: torch.Tensor, adapted: torch.Tensor, bare: torch.Tensor, start: int) -> Probe:
    two = adapted[start - 1 : -1].topk(2).values
    return Probe(
        prompt=tuple(ids[:start].tolist()),
        answer=tuple(ids[start:].tolist()),
        adapted=_of_tokens(adapted, ids),
        bare=_of_tokens(bare, ids),
        margins=tuple((two[:, 0] - two[:, 1]).tolist()),
    )


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits.float()
    if not bool(torch.isfinite(logits).all()):
        raise LoradockError("PEFT's output is not a number", hint="look at the adapter: loradock check")
    return logits


def _of_tokens(logits: torch.Tensor, ids: torch.Tensor) -> tuple[float, ...]:
    """The log-probability of each token but the first, after those before it."""
    return tuple(logits[:-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0].tolist())
