"""A model to be asked, in float32: whole in memory where it fits, else with each module's weights read as it runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from loradock.registry import machine
from loradock.registry.base import LocalBase
from loradock.trainer.weights.layers import (
    FROM_BASE,
    Source,
    base_name,
    filled,
    hollow,
    is_hollow,
    skeleton,
    ties,
    vocabulary,
    worn,
)
from loradock.trainer.weights.shards import Shards

_SHARE = 0.8  # of the free memory that a model may take


def speaker(local: LocalBase, adapter: Path | None = None, method: str = "", source: Source | None = None) -> Any:
    """A base, with an adapter where one is given; `source` gives its weights, by default its own files do.

    `method` is the adapter's. One that reckons with the base's weights when it is put on them needs them in memory.
    Raises Refused where the model does not hold all of the adapter: what it says would be said without the rest.
    """
    needed = Shards(local.path).size("float32")
    whole = method in FROM_BASE or (adapter and vocabulary(local, adapter))
    if whole or needed < _SHARE * machine.memory().available:
        bare = filled(local, source, adapter)
        return worn(bare, adapter) if adapter else bare
    return streamed(local, adapter, source)


def streamed(local: LocalBase, adapter: Path | None = None, source: Source | None = None) -> Any:
    """The same, with no more than one module's weights in memory; every token takes a reading of all."""
    read, places = source or Shards(local.path).read, Shards(local.path).places
    model = hollow(local.path, adapter) if adapter else skeleton(local.path).eval()
    tied = ties(model.get_base_model() if adapter else model)
    for outer, held in _groups(model):
        names = {name: name if name in places else tied.get(name, name) for name in held}
        outer.register_forward_pre_hook(_filler(held, names, read))
        outer.register_forward_hook(_emptier(held))
    return model


def _groups(model: Any) -> Iterator[tuple[nn.Module, dict[str, nn.Parameter]]]:
    """Each module that runs by itself, with the hollow weights that it needs; an adapter's layer with its base's."""
    taken = set[int]()
    for name, module in model.named_modules():
        inner = isinstance(module, BaseTunerLayer)
        found = {
            base_name(f"{name}.{key}"): parameter
            for key, parameter in module.named_parameters(recurse=inner)
            if id(parameter) not in taken and is_hollow(parameter)
        }
        taken |= {id(parameter) for parameter in found.values()}
        if found:
            yield module, found


def _filler(held: dict[str, nn.Parameter], names: dict[str, str], read: Source) -> Any:
    def fill(*_: Any) -> None:
        for name, parameter in held.items():
            parameter.data = read(names[name]).to(torch.float32)

    return fill


def _emptier(held: dict[str, nn.Parameter]) -> Any:
    hollow = {name: parameter.data for name, parameter in held.items()}

    def empty(*_: Any) -> None:
        for name, parameter in held.items():
            parameter.data = hollow[name]

    return empty
