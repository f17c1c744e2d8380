"""What a forward pass keeps for the backward pass: bytes, followed on the real model's code with shapes alone."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig

from loradock.trainer import catalogue, meta, methods
from loradock.trainer.recipe import Method, Recipe
from loradock.trainer.sizes import Activations


def follow(recipe: Recipe, config: PretrainedConfig, *, dtype: torch.dtype) -> Activations:
    """What a batch of `max_length` tokens a row keeps, from models of one layer and of two.

    The layers of a model keep the same, so that the difference of the two is what each of them keeps. Every tensor that
    torch makes in the two passes is counted as long as it lives; weights and their gradients are not.
    """
    try:
        found = [_run(recipe, config, layers, dtype) for layers in (1, 2)]
        like = ""
    except Exception:  # noqa: BLE001 # a method's code may ask for values in any way
        plain = recipe.model_copy(update={"method": Method.model_validate({"type": "lora"})})
        found, like = [_run(plain, config, layers, dtype) for layers in (1, 2)], "lora"
    one, two = found
    training, text = recipe.training, config.get_text_config()
    kept = torch.float32 if recipe.quantization else dtype  # PEFT holds what is not quantised in float32
    hidden = training.per_device_train_batch_size * training.max_length * text.hidden_size
    return Activations(
        first=one.kept,
        layer=two.kept - one.kept,
        boundary=hidden * kept.itemsize,
        working=one.most - one.kept,
        passing=(two.made - two.kept) - (one.made - one.kept),
        like=like,
    )


@dataclass(frozen=True, slots=True)
class _Pass:
    """Bytes of one forward and backward pass."""

    kept: int
    """What lives at the end of the forward pass."""
    made: int
    """All that was made until then."""
    most: int
    """The most that lived at once, to the end."""


def _run(recipe: Recipe, config: PretrainedConfig, layers: int, dtype: torch.dtype) -> _Pass:
    attention = recipe.training.attn_implementation
    model = meta.base(config, layers=layers, attention="eager" if attention == "eager" else None)
    bare = model
    if recipe.method.type != catalogue.FULL:
        wanted = methods.configure(recipe.method, model)
        assert wanted is not None  # noqa: S101 # only full fine-tuning has none
        model = meta.wrapped(model, wanted)
    else:
        model.get_input_embeddings().weight.requires_grad_(False)
        model.get_input_embeddings().register_forward_hook(lambda _module, _input, output: output.requires_grad_())
    model.to(dtype).train()
    bare.set_output_embeddings(torch.nn.Identity())
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_forget)
    training = recipe.training
    shape = (training.per_device_train_batch_size, training.max_length)
    living = _Living(model)
    with meta.without_values(), living:
        logits = model(input_ids=torch.zeros(shape, dtype=torch.long), use_cache=False).logits
        kept, made = living.bytes, living.made
        torch.autograd.backward([logits], [torch.empty_like(logits)])
    return _Pass(kept, made, living.most)


def _forget(parameter: torch.Tensor) -> None:
    parameter.grad = None


class _Living(TorchDispatchMode):  # type: ignore[misc]  # torch has no types here
    """The bytes of all tensors that live, but for a model's own."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.bytes = self.made = self.most = 0
        own = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
        self._own = own  # held, so that no other storage takes the place of one of them
        self._seen = {storage._cdata for storage in own}  # noqa: SLF001 # a storage's only identity

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()  # noqa: SLF001
        if key not in self._seen:
            self._seen.add(key)
            self.bytes += size
            self.made += size
            self.most = max(self.most, self.bytes)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.bytes -= size
