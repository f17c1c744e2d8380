"""What an adapter makes of its base's weights, one module at a time, whatever PEFT's method.

PEFT puts the adapter on a skeleton: the base's modules, whose weights take no memory. A module then gets its weights
from the base's files when it is asked for, merges, and gives them back, so that no more than one module is in memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import init_empty_weights
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from registry.base import LocalBase
from registry.check.names import ROOT
from registry.errors import BadInput, LoradockError, Refused, first_line
from trainer import meta
from trainer.weights.shards import Shards

FROM_BASE: Final = ("adamss", "frod", "osf", "psoft")
"""PEFT's types that reckon a part of themselves from the base's weights when they are put on it."""

_ADAPTER: Final = "default"
_WRAPPED: Final = ".token_adapter"
FAULTS: Final = (ValueError, TypeError, KeyError, RuntimeError, NotImplementedError, AttributeError)

Tensors = Mapping[str, torch.Tensor]
Source = Callable[[str], torch.Tensor]
"""The base's weight of a name."""


class Layers:
    """An adapter on its base, module by module, in float64.

    `source` gives the base's weights, by default as its files have them. Raises LoradockError where PEFT cannot load
    the adapter, and Refused where it changes what the base's files name otherwise.
    """

    def __init__(self, local: LocalBase, adapter: Path, method: str, source: Source | None = None) -> None:
        self.shards = Shards(local.path)
        self._source = source or self.shards.read
        bare = filled(local, self._source) if method in FROM_BASE else skeleton(local.path)
        self._ties = ties(bare)
        self._fixed = method in FROM_BASE
        model = worn(bare, adapter)
        self._modules = dict(_adapted(model))
        self._trained = {
            name: value.double()
            for name, value in _vectors(model)
            if name in self.shards.places and not self._fixed and not bool(value.isnan().any())
        }
        if unknown := [name for name in self.names if self.held_as(name) not in self.shards.places]:
            raise Refused(
                f"the base's files do not name {unknown[0]}, which the adapter changes",
                hint="this version of transformers joins or renames it; PEFT's merge_and_unload can still merge it",
            )

    @cached_property
    def names(self) -> Mapping[str, str]:
        """Every weight that the adapter may change, with its module."""
        found = {
            f"{name}.{parameter}": name
            for name, module in self._modules.items()
            for parameter, _ in _inner(module).named_parameters()
        }
        return found | {name: "" for name in self._trained if name not in found}

    def held_as(self, name: str) -> str:
        """The name under which the base's files hold a weight, which may be tied to another."""
        tied = self._ties.get(name)
        return tied if tied and name not in self.shards.places else name

    def before(self, name: str) -> torch.Tensor:
        """The base's weight."""
        return self._source(self.held_as(name)).double()

    def after(self, name: str) -> torch.Tensor | None:
        """The weight as the adapter makes it; None for one that it leaves alone."""
        if name in self._trained:
            return self._trained[name]
        if name not in self.names:
            return None
        return self._merged(self.names[name])[name]

    @property
    def untied(self) -> Mapping[str, str]:
        """Weights that the base holds as one with another and the adapter makes differ, each with that other."""
        return {
            name: source
            for name, source in self._ties.items()
            if name not in self.shards.places and (name in self.names or source in self.names) and self._apart(name)
        }

    def modules(self) -> Iterator[tuple[str, Tensors, Tensors]]:
        """Each module with its weights before and after, those of linear layers as (output, input)."""
        for name, module in self._modules.items():
            inner = _inner(module)
            keys = [f"{name}.{parameter}" for parameter, _ in inner.named_parameters()]
            after = self._merged(name)
            before = {key: self.before(key) for key in keys}
            turned = isinstance(inner, Conv1D)
            yield name, _turned(before) if turned else before, _turned(after) if turned else after
        for name, value in self._trained.items():
            yield name, {name: self.before(name)}, {name: value}

    def is_linear(self, name: str) -> bool:
        """Whether a module is a linear layer."""
        return name in self._modules and isinstance(_inner(self._modules[name]), nn.Linear | Conv1D)

    def _apart(self, name: str) -> bool:
        one, other = self.after(name), self.after(self._ties[name])
        before = self.before(name)
        return not torch.equal(before if one is None else one, before if other is None else other)

    def _merged(self, name: str) -> dict[str, torch.Tensor]:
        module = self._modules[name]
        if isinstance(module, ModulesToSaveWrapper):
            kept = module.modules_to_save[_ADAPTER]
            return {f"{name}.{key}": value.data.double() for key, value in kept.named_parameters()}
        inner = module.get_base_layer()
        held = {key: parameter.data for key, parameter in inner.named_parameters()}
        try:
            for key, parameter in inner.named_parameters():
                full = f"{name}.{key}"
                if not self._fixed:
                    parameter.data = self._trained[full] if full in self._trained else self.before(full)
            with torch.no_grad():
                module.merge(safe_merge=True, adapter_names=[_ADAPTER])
            merged = module.get_base_layer()
            found = {f"{name}.{key}": getattr(merged, key).data.double() for key in held}
            if merged is not inner:  # LN_TUNING changes places with its base
                module.unmerge()
        except FAULTS as error:
            raise LoradockError(f"PEFT cannot merge {name}: {first_line(error)}") from error
        finally:
            module.merged_adapters.clear()
            for key, value in held.items():
                getattr(inner, key).data = value
        return found


def skeleton(directory: Path) -> Any:
    """The base's model, whose weights are one zero in every place and take no memory; its vectors are not a number."""
    config = meta.config(directory)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for module in model.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            vector = value.dim() == 1
            data = torch.full(value.shape, torch.nan) if vector else torch.zeros(()).expand(value.shape)
            setattr(module, name, nn.Parameter(data, requires_grad=False))
    return model


def base_name(name: str) -> str:
    """The base's own name of a parameter of an adapted model."""
    bare = name.removeprefix(ROOT)
    for part in (".base_layer", ".token_adapter", ".original_module"):
        bare = bare.replace(f"{part}.", ".")
    return bare


def filled(local: LocalBase, source: Source | None = None) -> Any:
    """The base's model in float32, with the weights that `source` gives, by default its own."""
    try:
        model = AutoModelForCausalLM.from_pretrained(local.path, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BadInput(f"the model of {local.base.id} cannot be read: {first_line(error)}") from error
    if source:
        held = Shards(local.path).places
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in held:
                    parameter.copy_(source(name))
    return model.eval()


def worn(bare: Any, adapter: Path) -> Any:
    """A model with an adapter on it; raises LoradockError where PEFT cannot load it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return PeftModel.from_pretrained(bare, adapter).eval()
    except (*FAULTS, OSError) as error:
        raise LoradockError(f"PEFT cannot load the adapter: {first_line(error)}") from error


def _adapted(model: Any) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        clean = name.removeprefix(ROOT).removesuffix(_WRAPPED)
        if isinstance(module, BaseTunerLayer):
            for part, child in module.named_children():
                if part != "base_layer":  # it would take memory
                    child.double()
            yield clean, module
        elif isinstance(module, ModulesToSaveWrapper) and _ADAPTER in module.modules_to_save:
            yield clean, module


def _inner(module: Any) -> Any:
    return module.original_module if isinstance(module, ModulesToSaveWrapper) else module.get_base_layer()


def _vectors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The vectors that may be the base's own, such as biases that an adapter trained."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            yield base_name(name), parameter.data


def ties(model: Any) -> Mapping[str, str]:
    """Weights that are one with another, each with that other."""
    found: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return found


def _turned(tensors: Tensors) -> Tensors:
    return {name: value.T if value.dim() == 2 else value for name, value in tensors.items()}
