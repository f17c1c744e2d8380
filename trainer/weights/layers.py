"""What an adapter makes of its base's weights, one module at a time, whatever PEFT's method.

PEFT puts the adapter on a skeleton: the base's modules, whose weights take no memory. A module then gets its weights
from the base's files when it is asked for, merges, and gives them back, so that no more than one module is in memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import init_empty_weights
from peft import PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from peft.utils.other import ModulesToSaveWrapper
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from loradock.registry import artifact, check
from loradock.registry.artifact import read_header
from loradock.registry.base import LocalBase, unscaled
from loradock.registry.check.config import is_embedding
from loradock.registry.check.findings import some
from loradock.registry.check.names import ROOT
from loradock.registry.errors import BadInput, LoradockError, Refused, first_line
from loradock.trainer import meta
from loradock.trainer.weights.shards import Shards

FROM_BASE: Final = ("adamss", "frod", "osf", "psoft")
"""PEFT's types that reckon a part of themselves from the base's weights when they are put on it."""

_ADAPTER: Final = "default"
_WRAPPED: Final = ".token_adapter"
FAULTS: Final = (ValueError, TypeError, KeyError, RuntimeError, NotImplementedError, AttributeError)

Tensors = Mapping[str, torch.Tensor]
Source = Callable[[str], torch.Tensor]
"""The base's weight of a name."""


class Joined(Refused):
    """What an adapter changes is not in the base's files as it is in the model: it is joined, renamed or resized."""


class Layers:
    """An adapter on its base, module by module, in float64.

    `source` gives the base's weights, by default as its files have them. Raises LoradockError where PEFT cannot load
    the adapter, and Joined where it changes what the base's files do not hold so.
    """

    def __init__(self, local: LocalBase, adapter: Path, method: str, source: Source | None = None) -> None:
        self.shards = Shards(local.path)
        self._source = source or self.shards.read
        self._fixed = method in FROM_BASE
        if rows := vocabulary(local, adapter):
            raise Joined(f"the adapter has embeddings of its own for {rows} tokens, which is not the base's number")
        model = worn(filled(local, self._source), adapter) if self._fixed else hollow(local.path, adapter)
        self._ties = ties(model.get_base_model())
        self._modules = dict(_adapted(model))
        self._trained = {
            name: value
            for name, value in _of_the_base(model)
            if self.held_as(name) in self.shards.places and not self._fixed
        }
        if unknown := [name for name in self.names if self.held_as(name) not in self.shards.places]:
            raise Joined(f"the base's files do not name {unknown[0]}, which the adapter changes")

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
        if name not in self.names:
            return None
        if module := self.names[name]:
            return self._merged(module)[name]
        return self._trained[name].double()

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
        for name, module in self.names.items():
            if not module:
                yield name, {name: self.before(name)}, {name: self._trained[name].double()}

    def is_linear(self, name: str) -> bool:
        """Whether a module is a linear layer."""
        return name in self._modules and isinstance(_inner(self._modules[name]), nn.Linear | Conv1D)

    def is_embedding(self, name: str) -> bool:
        """Whether a module is an embedding that the adapter adds to."""
        module = self._modules.get(name)
        return isinstance(module, BaseTunerLayer) and isinstance(_inner(module), nn.Embedding)

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
                    trained = self._trained.get(full)
                    parameter.data = self.before(full) if trained is None else trained.double()
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


def skeleton(directory: Path, whole: Collection[str] = ()) -> Any:
    """The base's model, whose weights are one zero in every place and take no memory; its vectors are not a number.

    Those that `whole` names take memory, and can be written to.
    """
    config = meta.config(directory)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for path, module in model.named_modules():
        for name, value in list(module.named_parameters(recurse=False)):
            vector = value.dim() == 1
            data = torch.full(value.shape, torch.nan) if vector else torch.zeros(()).expand(value.shape)
            data = torch.zeros(value.shape) if not vector and f"{path}.{name}" in whole else data
            setattr(module, name, nn.Parameter(data, requires_grad=False))
    return model


def hollow(directory: Path, adapter: Path) -> Any:
    """The skeleton of a base with an adapter on it, and with those of the base's weights that the adapter's file holds.

    PEFT writes embeddings and head beside an adapter that adds to them, and takes them for the base's when it loads it.
    """
    held, names = read_header(adapter / artifact.WEIGHTS), copied(adapter)
    model = worn(skeleton(directory, names), adapter)
    found = {base_name(name): parameter for name, parameter in model.named_parameters() if name not in held}
    for name in names & found.keys():
        if found[name].dim() > 1:
            found[name].data = torch.zeros(()).expand(found[name].shape)
    there = {base_name(name): parameter for name, parameter in model.named_parameters() if name in held}
    for pair in ties(model.get_base_model()).items():  # the base has one weight for both
        for one, other in (pair, pair[::-1]):
            if one in found and other in there:
                found[one].data = there[other].data
    return model


def copied(adapter: Path) -> set[str]:
    """The names of an adapter's tensors as the base would name them, among them those of the base that it holds."""
    return {base_name(name) for name in read_header(adapter / artifact.WEIGHTS)}


def restore(bare: Any, local: LocalBase, adapter: Path) -> None:
    """Give a base in memory its own weights again, after an adapter that brought some along."""
    shards, tied = Shards(local.path), ties(bare)
    names = {tied.get(name, name) for name in copied(adapter)} & shards.places.keys()
    with torch.no_grad():
        for name, parameter in bare.named_parameters():
            if name in names:
                parameter.copy_(shards.read(name))


def is_hollow(parameter: nn.Parameter) -> bool:
    """Whether a parameter of a skeleton has none of its values."""
    return bool(parameter.isnan().all()) if parameter.dim() == 1 else not any(parameter.stride())


def base_name(name: str) -> str:
    """The base's own name of a parameter of an adapted model."""
    bare = name.removeprefix(ROOT)
    for part in (".base_layer", ".token_adapter", ".original_module"):
        bare = bare.replace(f"{part}.", ".")
    return bare


def vocabulary(local: LocalBase, adapter: Path) -> int | None:
    """How many tokens an adapter's own embeddings have, where the base has another number of them; else None."""
    layers = check.read_shapes(local.path).layers
    for name, info in read_header(adapter / artifact.WEIGHTS).items():
        module, _, kind = base_name(name).replace(".modules_to_save.", ".").rpartition(".")
        layer = layers.get(module) if kind == "weight" else None
        if layer and (layer.embedding or is_embedding(module)):
            rows = layer.inputs if layer.embedding else layer.outputs
            if rows not in (None, info.shape[0]):
                return info.shape[0]
    return None


def filled(local: LocalBase, source: Source | None = None, adapter: Path | None = None) -> Any:
    """The base's model in float32, with the weights that `source` gives, by default its own.

    It gets as many tokens as the embeddings have that an adapter brings along.
    """
    if local.quantized and not local.marked:
        raise unscaled(local.base.id)
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
    if rows := adapter and vocabulary(local, adapter):
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model.eval()


def worn(bare: Any, adapter: Path, what: str = "adapter") -> Any:
    """A model with an adapter on it; raises LoradockError where PEFT cannot load it, and Refused where it drops some.

    PEFT passes over tensors that the model has no place for, such as the head of a classifier on a language model.
    `what` is the adapter's name in errors.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(bare, adapter).eval()
            left = _left(model, adapter)
    except (*FAULTS, OSError) as error:
        raise LoradockError(f"PEFT cannot load the {what}: {first_line(error)}") from error
    if dropped := sorted(_dropped(adapter, left)):
        getattr(model.base_model, "unload", lambda: None)()  # the base may be worn by others
        raise Refused(
            f"on this base PEFT leaves out {some(dropped)} of the {what}, without which it is another than was trained",
            hint="look at it: loradock check DIR --base BASE",
        )
    return model


def _left(model: Any, adapter: Path) -> Collection[str]:
    """The tensors that PEFT has no place for, as it says when it loads them once more.

    AdaLoRA's cannot be loaded twice: their modules are cut to the ranks that are left, which fits the whole ones only.
    Of the prompt methods PEFT says that it has no place for any.
    """
    config = model.peft_config[_ADAPTER]
    if config.peft_type != PeftType.ADALORA:
        found = set[str](model.load_adapter(adapter, _ADAPTER).unexpected_keys)
        return found - set(get_peft_model_state_dict(model)) if config.is_prompt_learning else found
    saved = config.modules_to_save or ()
    with safe_open(adapter / artifact.WEIGHTS, framework="pt") as file:
        return [name for name in file.keys() if ".lora_" not in name and name.split(".")[-2] not in saved]  # noqa: SIM118


def _dropped(adapter: Path, left: Collection[str]) -> Iterator[str]:
    """Those of an adapter's tensors, of which PEFT found no place for `left`, that it does not hold a second time."""
    with safe_open(adapter / artifact.WEIGHTS, framework="pt") as file:
        names = set(file.keys())
        gone = {name if name in names else name.replace(f".{_ADAPTER}", "") for name in left} & names
        for name in gone:
            value = file.get_tensor(name)
            same = (other for other in names - gone if file.get_slice(other).get_shape() == list(value.shape))
            if not any(torch.equal(file.get_tensor(other), value) for other in same):
                yield name


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


def _of_the_base(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """What may be the base's own weights and came with the adapter, such as biases that it trained."""
    for name, parameter in model.named_parameters():
        if not is_hollow(parameter) and not bool(parameter.isnan().any()):
            yield base_name(name), parameter.data


def ties(model: Any) -> Mapping[str, str]:
    """Weights that are one with another, each with that other."""
    found: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return found


def _turned(tensors: Tensors) -> Tensors:
    return {name: value.T if value.dim() == 2 else value for name, value in tensors.items()}
