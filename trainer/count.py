"""How many weights a recipe trains, and how large what it leaves is: exact, from shapes alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, PeftConfig, TaskType, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from transformers import PretrainedConfig
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from loradock.registry.errors import BadInput
from loradock.trainer import catalogue, meta, methods, targets
from loradock.trainer.recipe import Recipe
from loradock.trainer.sizes import Counts

Shape = tuple[int, ...]
_SHIRA: Final = "shira_weight"


@dataclass(frozen=True, slots=True)
class _Added:
    """What a method adds to a base."""

    trainable: list[Shape]
    frozen: int
    buffers: int
    file: int
    logits: bool = False


def parameters(recipe: Recipe, config: PretrainedConfig, *, directory: Path | None = None) -> Counts:
    """Count a recipe's weights on a base; raises BadInput when its method cannot be put on that base.

    `directory` is what relative paths of the adapters that X-LoRA mixes are relative to; its file is not counted.

    Nothing is loaded. PEFT itself makes the method's weights, as shapes; two methods whose code needs values are
    counted from their layers' sizes. ADAMSS clusters the base's weights, and may come out smaller than is told.
    """
    model = meta.base(config)
    sizes = _linear(model)
    base = sum(parameter.numel() for parameter in model.parameters())
    if recipe.method.type == catalogue.FULL:
        added = _Added([tuple(parameter.shape) for parameter in model.parameters()], -base, 0, 0)
    else:
        added = _added(recipe, model, base, directory)
    trainable = sum(math.prod(shape) for shape in added.trainable)
    return Counts(
        base=base,
        trainable=trainable,
        adapter=trainable + added.frozen,
        quantizable=sum(sizes),
        largest=max(sizes, default=0),
        rows_and_columns=sum(sum(shape) for shape in added.trainable),
        buffers=added.buffers,
        file=added.file,
        logits=added.logits,
    )


def _added(recipe: Recipe, model: Any, base: int, directory: Path | None) -> _Added:
    kind = recipe.method.peft_type
    if kind == "xlora" and not recipe.method.settings.get("adapters"):
        raise BadInput("xlora is counted with the adapters that it mixes", hint="give method.adapters: {NAME: PATH}")
    found = methods.configure(recipe.method, model, directory=directory)
    if found is None:
        raise BadInput(f"{recipe.method.type} adds no weights")
    if kind in BY_SIZE:
        return _by_size(found, model, BY_SIZE[kind])
    of_base = {id(buffer) for buffer in model.buffers()}
    doubled = str(recipe.method.settings.get("init_lora_weights", "")).startswith(catalogue.FROM_BASE)
    wrapped = meta.wrapped(model, found)
    trained = [
        tuple(parameter.shape)
        for name, parameter in wrapped.named_parameters()
        if parameter.requires_grad and "ranknum" not in name  # AdaLoRA's own note of its rank
    ]
    total = sum(parameter.numel() for parameter in wrapped.parameters())
    return _Added(
        trained,
        frozen=total - base - sum(map(math.prod, trained)),
        buffers=sum(buffer.nbytes for buffer in wrapped.buffers() if id(buffer) not in of_base),
        file=0 if kind == "xlora" else _file(wrapped, doubled=doubled),
        logits=methods.wants_logits(wrapped),
    )


def _file(wrapped: Any, *, doubled: bool) -> int:
    """Bytes of the file that PEFT saves; what starts from the base's own parts is saved with twice its rank."""
    with meta.without_values(), torch.no_grad():
        held = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    tensors = {name: (_saved(name, tensor, doubled=doubled), tensor.dtype) for name, tensor in held.items()}
    tensors |= {
        name.replace(_SHIRA, "shira_indices"): ((2, *shape), torch.int32)  # where those weights are, which follows
        for name, (shape, _) in tensors.items()  # from the seed and is no parameter
        if _SHIRA in name
    }
    return file_size(tensors)


def _saved(name: str, tensor: torch.Tensor, *, doubled: bool) -> Shape:
    shape = tuple(tensor.shape)
    if doubled and ".lora_A." in name:
        return (2 * shape[0], *shape[1:])
    if doubled and ".lora_B." in name:
        return (shape[0], 2 * shape[1], *shape[2:])
    return shape


_DTYPES: Final = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""By safetensors' names, in the order that its files have."""


def file_size(tensors: Mapping[str, tuple[Shape, torch.dtype]]) -> int:
    """Bytes of a safetensors file of these tensors, header included (https://huggingface.co/docs/safetensors)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    order = {dtype: place for place, dtype in enumerate(_DTYPES)}
    for name, (shape, dtype) in sorted(tensors.items(), key=lambda item: (order[item[1][1]], item[0])):
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = len(json.dumps(header, separators=(",", ":")))
    return 8 + text + -text % 8 + end


@dataclass(frozen=True, slots=True)
class _Layer:
    """What a method adds to one linear layer: trained tensors, others that are saved with them, others that are not."""

    trainable: Mapping[str, Shape]
    saved: Mapping[str, Shape]
    held: int
    """Weights."""


def _boft(config: PeftConfig, ins: int, outs: int) -> _Layer:
    """Blocks and scales, and the butterfly's permutation, a matrix (https://arxiv.org/abs/2311.06243, section 4)."""
    block = config.boft_block_size or ins // config.boft_block_num
    factors = config.boft_n_butterfly_factor if torch.cuda.is_available() else 1  # as PEFT without its CUDA kernel
    return _Layer({"boft_R": (factors, ins // block, block, block), "boft_s": (outs, 1)}, {}, factors * ins * ins)


def _adamss(config: PeftConfig, ins: int, outs: int) -> _Layer:
    """A and B for each cluster of rows, and the projection that they start from, as PEFT's AdamssLayer makes them."""
    rank, clusters, inner = min(config.r, ins, outs), config.num_subspaces, config.subspace_rank
    rows = [outs // clusters + (index < outs % clusters) for index in range(clusters)]
    trained: dict[str, Shape] = {f"adamss_A.{index}": (inner, rank) for index in range(clusters)}
    trained |= {f"adamss_B.{index}": (each, inner) for index, each in enumerate(rows)}
    return _Layer(trained, {"adamss_newB": (rank, ins)}, 0)


BY_SIZE: Final[Mapping[str, Callable[[PeftConfig, int, int], _Layer]]] = {"boft": _boft, "adamss": _adamss}
"""PEFT's types whose code looks at values, or takes minutes over shapes."""


def _by_size(config: PeftConfig, model: Any, sizes: Callable[[PeftConfig, int, int], _Layer]) -> _Added:
    """LoRA of rank 1 finds the layers that the method takes; what it adds to each follows from its size."""
    fields = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
    given = {field: value for field in fields if (value := getattr(config, field, None)) is not None}
    finder = meta.wrapped(model, LoraConfig(task_type=TaskType.CAUSAL_LM, r=1, **given))
    trained = {name: tuple(found.shape) for name, found in finder.named_parameters() if ".modules_to_save." in name}
    saved: dict[str, Shape] = {}
    held = 0
    for name, module in finder.named_modules():
        if isinstance(module, LoraLayer):
            layer = sizes(config, module.in_features, module.out_features)
            trained |= {f"{name}.{key}": shape for key, shape in layer.trainable.items()}
            saved |= {f"{name}.{key}": shape for key, shape in layer.saved.items()}
            held += layer.held
    return _Added(
        list(trained.values()),
        frozen=0,
        buffers=4 * (held + sum(map(math.prod, saved.values()))),
        file=file_size({name: (shape, torch.float32) for name, shape in (trained | saved).items()}),
        logits=methods.wants_logits(finder),
    )


def _linear(model: Any) -> list[int]:
    """The sizes of the linear layers that transformers hands to bitsandbytes: all but the head, in general."""
    kept = get_keys_to_not_convert(model)
    return [
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, targets.LINEAR) and should_convert_module(name, kept)
    ]
