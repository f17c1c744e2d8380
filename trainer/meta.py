"""Models without weights: on torch's meta device, where a tensor has a shape and a type, and no memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftConfig
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from loradock.registry.errors import BadInput, first_line
from loradock.trainer import methods

_UNBOUNDED: Final = 2**31
_INDEXING: Final = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)


def config(directory: Path) -> PretrainedConfig:
    """Transformers' configuration from a directory's config.json; raises BadInput when it is none of a known model."""
    try:
        return AutoConfig.from_pretrained(directory)
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{directory / 'config.json'} cannot be used: {first_line(error)}") from error


def longest(config: PretrainedConfig) -> int:
    """Tokens that a base was made to read."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or _UNBOUNDED


def base(config: PretrainedConfig, *, layers: int = 0, attention: str | None = None) -> Any:
    """The causal language model that a configuration describes, with its lowest `layers` alone when that is given.

    Its weights are float32 by type. `attention` is transformers' name of an implementation.
    """
    given = type(config).from_dict(config.to_dict())
    text = given.get_text_config()
    if layers:
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            with suppress(AttributeError):  # some work it out of the number of layers
                text.layer_types = text.layer_types[:layers]
    text.use_cache = given.use_cache = False
    options = {"attn_implementation": attention} if attention else {}
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(given, dtype=torch.float32, **options)
    except ValueError as error:
        kind = getattr(config, "model_type", "unknown")
        raise BadInput(f"a {kind} model is no causal language model that transformers knows") from error


def wrapped(model: Any, found: PeftConfig) -> Any:
    """A meta model with a method's weights added; raises BadInput as `methods.wrap` does."""
    if str(getattr(found, "init_lora_weights", "")).split("_")[0] in ("pissa", "olora", "loftq", "orthogonal"):
        found.init_lora_weights = True  # the count and the shapes are those of the ordinary start
    if hasattr(found, "mask_fn"):
        found.mask_fn = None  # SHiRA's mask says which weights, and the rank how many
    with without_values():
        return methods.wrap(model, found)


@contextmanager
def without_values() -> Iterator[None]:
    """Let code that makes and moves tensors run on shapes alone."""
    with torch.device("meta"), _Shapes():
        yield


class _Shapes(TorchFunctionMode):  # type: ignore[misc]  # torch has no types here
    """What asks for values gets the answer that keeps every shape as large as it can be."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        given.pop("generator", None)
        if func is torch.Tensor.__bool__:
            return True
        if func is torch.Tensor.cpu:
            return args[0]
        if func is torch.Tensor.to:
            return func(args[0], "meta", _type_alone(args, given))
        if func is torch.bincount:
            return torch.empty(given.get("minlength", 0), dtype=torch.long)
        if func in _INDEXING:
            args = (args[0], _whole(args[1]), *args[2:])
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])
        return func(*args, **given)


def _type_alone(args: tuple[Any, ...], given: dict[str, Any]) -> torch.dtype:
    """The type that `Tensor.to` was asked for, whatever the device."""
    for value in (*args[1:], *given.values()):
        if isinstance(value, torch.dtype):
            return value
        if isinstance(value, torch.Tensor):
            return value.dtype
    return args[0].dtype


def _whole(index: Any) -> Any:
    """An index whose masks take everything."""
    if isinstance(index, tuple):
        return tuple(_whole(part) for part in index)
    return slice(None) if isinstance(index, torch.Tensor) and index.dtype is torch.bool else index


class _Attention(torch.autograd.Function):  # type: ignore[misc]
    """What FlashAttention keeps for its backward pass: its inputs, its output, and one number a row.

    https://arxiv.org/abs/2307.08691, section 3.1.2; torch's kernels for CPUs and for GPUs do the same.
    """

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        rows, heads, length, _ = query.shape  # the output lies in memory as the next layer reads it
        out = torch.empty((rows, length, heads, value.shape[-1]), dtype=query.dtype, device=query.device).transpose(
            1, 2
        )
        ctx.save_for_backward(query, key, value, out, torch.empty(query.shape[:-1], device=query.device))
        return out

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
