"""The modules of a base and how wide they are, from its safetensors headers, or as good as config.json tells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from loradock.registry.artifact import TensorInfo, read_header, read_values
from loradock.registry.errors import BadInput
from loradock.registry.outside import weight_map

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STACK = re.compile(r"(?:^|\.)((?:layers|h|blocks|block|layer)\.(\d+)\..+)$")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|wpe|word_embeddings|embed_in|embed_positions|embeddings)$")
_TIED: Final = ("embed_tokens", "wte", "word_embeddings")
_BARE = re.compile(r"^(?:layers|h|blocks|wte|embed_tokens|word_embeddings)\b")
_HEADS: Final = ("lm_head", "score", "embed_out", "classifier")
_PREFIXES: Final = {
    **dict.fromkeys(("gpt2", "bloom", "falcon", "gptj", "gpt_neo", "gpt_bigcode", "mpt", "codegen"), "transformer"),
    "gpt_neox": "gpt_neox",
}
"""What a causal model calls its body, where that is not `model` (transformers' base_model_prefix)."""
_TRANSPOSED_TYPES: Final = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_TRANSPOSED = re.compile(r"\.(?:c_attn|c_proj|c_fc|q_attn)$")
"""transformers' Conv1D, whose weight is (input, output)."""
EXPERT: Final = re.compile(r"(?P<stack>.+\.experts)(?:\.(?P<number>\d+))?\.(?P<part>\w+?)(?:\.weight)?$")
"""A parameter of all experts of a layer, or a module of one of them."""
_GATE_UP: Final = ("gate_proj", "up_proj", "w1", "w3")
_DOWN: Final = ("down_proj", "w2")
_FLOATS: Final = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True, slots=True)
class Layer:
    """A module of the base."""

    inputs: int | None = None
    """Width of what goes in, for an embedding its vocabulary; None where the files do not tell."""
    outputs: int | None = None
    embedding: bool = False
    bias: bool = False


@dataclass(frozen=True, slots=True)
class Stack:
    """The experts of one layer, which PEFT sees as two parameters with a matrix for each."""

    count: int
    hidden: int
    between: int
    apart: bool
    """Whether the files hold each expert by itself."""

    def layer(self, parameter: str) -> Layer | None:
        """How wide each matrix of a parameter is, or each expert's own module; None for one that is not known."""
        wide = {"gate_up_proj": (self.hidden, 2 * self.between)}
        wide |= dict.fromkeys(_GATE_UP, (self.hidden, self.between)) | dict.fromkeys(_DOWN, (self.between, self.hidden))
        return Layer(*wide[parameter]) if parameter in wide else None


@dataclass(frozen=True)
class BaseShapes:
    """What of a base an adapter must fit."""

    layers: Mapping[str, Layer] = field(default_factory=dict)
    """By the module's full name in the causal model: `model.layers.0.self_attn.q_proj`."""
    complete: bool = False
    """Whether a module that is not in `layers` is not in the base."""
    depth: int | None = None
    """How many layers are stacked."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Its config.json."""
    files: Mapping[str, tuple[Path, TensorInfo]] = field(default_factory=dict, repr=False)
    """Where each module's weight lies."""
    stacks: Mapping[int, Stack] = field(default_factory=dict)
    """The experts, by the layer that they are in."""

    def stack(self, module: str) -> Stack | None:
        """The experts that an adapter's module belongs to."""
        stacked = _STACK.search(module)
        return self.stacks.get(int(stacked[2])) if stacked and ".experts" in module else None

    @property
    def architecture(self) -> str:
        """The model's class, as config.json names it."""
        return str((self.config.get("architectures") or [""])[0])

    @property
    def transposed(self) -> bool:
        """Whether its linear layers are Conv1D."""
        return self.config.get("model_type") in _TRANSPOSED_TYPES

    @cached_property
    def _by_tail(self) -> Mapping[str, list[str]]:
        found: dict[str, list[str]] = {}
        for module in self.layers:
            found.setdefault(_tail(module), []).append(module)
        return found

    def locate(self, module: str) -> str:
        """The base's own name of an adapter's module; empty when there is no such module, or more than one.

        A model with more than one part (`text_config`) is named differently by each release of transformers, so there,
        and where only config.json is known, the adapter's own name is taken for right.
        """
        if module in self.layers:
            return module
        found = self._by_tail.get(_tail(module), [])
        return found[0] if len(found) == 1 else ""

    def renames(self, module: str) -> str:
        """The name that a module ought to have, where that is another one and is sure; else empty."""
        found = self.locate(module) or self._beside(module)
        loose = not self.complete or "text_config" in self.config
        return "" if loose or found == module else found

    def _beside(self, module: str) -> str:
        """The name of a module that holds a layer's experts, which is in no file by itself: as its layer is called."""
        stacked = _STACK.search(module) if self.stack(module) else None
        if not stacked or any(name.startswith(f"{module}.") for name in self.layers):
            return ""
        layer = stacked[1].partition(f".{stacked[2]}.")[0] + f".{stacked[2]}."
        within = next((name for name in self.layers if name.startswith(layer) or f".{layer}" in name), "")
        return within[: within.index(layer)] + stacked[1] if within else ""

    def layer(self, module: str) -> Layer | None:
        """A module's shape; None for one that the base does not have, an unknown shape for one it may have."""
        if found := self.locate(module):
            return self.layers[found]
        expert, stack = EXPERT.match(module), self.stack(module)
        if stack and expert and expert["number"]:
            return stack.layer(expert["part"]) if int(expert["number"]) < stack.count else None
        stacked = _STACK.search(module)
        if stacked and self.depth and int(stacked[2]) >= self.depth:
            return None
        holds_others = any(name.startswith(f"{module}.") for name in self.layers)  # fused experts
        many = len(self._by_tail.get(_tail(module), [])) > 1
        return Layer() if holds_others or many or not self.complete or ".experts" in module else None

    def tied(self, module: str) -> str:
        """The module whose weight a module has, itself, or the embedding that a head is tied to."""
        found = self.locate(module)
        tied = found == "lm_head" and found not in self.files
        return next((name for name in self.files if name.rsplit(".", 1)[-1] in _TIED), "") if tied else found

    def weight(self, module: str) -> NDArray[Any]:
        """A linear layer's weight as float64 of (output, input); raises BadInput where its values are not at hand."""
        found = self.files.get(self.locate(module))
        if found is None:
            raise BadInput(f"the base's files hold no weight of {module}", hint="give a --base with its safetensors")
        path, info = found
        values = next((values for _, values in read_values(path, {module: info})), None)
        if values is None:
            raise BadInput(f"the base holds {module} as {info.dtype}", hint="give a --base that is not quantised")
        weight = values.astype("float64").reshape(info.shape)
        return weight.T if self.transposed and _TRANSPOSED.search(module) else weight


def read_shapes(directory: Path) -> BaseShapes:
    """The shapes of a base in a directory with config.json; its safetensors headers are read where they all lie there.

    Raises BadInput.
    """
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{directory} holds no readable config.json", hint="give a Hugging Face model") from error
    paths = _weight_files(directory)
    if not paths:
        return shapes_of_config(config)
    found = {name: (path, info) for path in paths for name, info in read_header(path).items()}
    return _from_tensors(found, config)


def _weight_files(directory: Path) -> list[Path]:
    if (places := weight_map(directory)) is not None:
        paths = sorted({*places.values()})
        return paths if all(path.is_file() for path in paths) else []
    return sorted(directory.glob("model*.safetensors")) or sorted(directory.glob("*.safetensors"))


def _from_tensors(found: Mapping[str, tuple[Path, TensorInfo]], config: Mapping[str, Any]) -> BaseShapes:
    prefix = f"{_PREFIXES.get(str(config.get('model_type')), 'model')}."
    bare = not any(name.startswith(prefix) for name in found) and any(_BARE.match(name) for name in found)
    layers, files, told = {}, {}, dict(_llama_like(_text(config)))
    for name, (path, info) in found.items():
        stem, _, kind = name.rpartition(".")
        module = prefix + stem if bare and not stem.startswith(_HEADS) else stem
        if kind == "weight":
            seen = _layer(module, info, config, bias=f"{stem}.bias" in found)
            layers[module] = replace(told.get(module, seen), bias=seen.bias) if seen.inputs is None else seen
            files[module] = (path, info)
        elif kind in ("qweight", "weight_packed"):
            layers[module] = told.get(module, Layer())
    shapes = {name: info.shape for name, (_, info) in found.items()}
    return BaseShapes(
        _with_tied_head(layers, config),
        complete=True,
        depth=_depth(config),
        config=config,
        files=files,
        stacks=dict(_stacks(shapes, config)) or dict(_told_stacks(_text(config))),
    )


def _stacks(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> Iterator[tuple[int, Stack]]:
    """The experts of each layer whose weights are (output, input), or (expert, input, output) and the other way round.

    Of two dimensions the one that is the model's width is the hidden one.
    """
    experts: dict[int, dict[str, Any]] = {}
    for name, shape in shapes.items():
        match, stacked = EXPERT.match(name), _STACK.search(name)
        if match and stacked and len(shape) == (2 if match["number"] else 3):
            experts.setdefault(int(stacked[2]), {})[f"{match['number'] or ''}.{match['part']}"] = shape
    hidden = int(_text(config).get("hidden_size") or 0)
    for number, parts in experts.items():
        down = next((shape for key, shape in parts.items() if key.rpartition(".")[2] in _DOWN), None)
        if down is None or hidden not in down[-2:]:
            continue
        between = down[-1] if down[-2] == hidden else down[-2]
        apart = len(down) == 2
        count = 1 + max(int(key.partition(".")[0]) for key in parts) if apart else down[0]
        yield number, Stack(count, hidden, between, apart)


def _layer(module: str, info: TensorInfo, config: Mapping[str, Any], *, bias: bool) -> Layer:
    if len(info.shape) != 2 or info.dtype not in _FLOATS:
        return Layer(bias=bias)
    first, second = info.shape
    if _EMBEDDING.search(module):
        return Layer(first, second, embedding=True)
    if config.get("model_type") in _TRANSPOSED_TYPES and _TRANSPOSED.search(module):
        return Layer(first, second, bias=bias)
    return Layer(second, first, bias=bias)


def _with_tied_head(layers: dict[str, Layer], config: Mapping[str, Any]) -> dict[str, Layer]:
    """A head that is tied to the embedding is in no file."""
    architecture = str((config.get("architectures") or [""])[0])
    embedding = next((layer for name, layer in layers.items() if name.rsplit(".", 1)[-1] in _TIED), None)
    if embedding and "lm_head" not in layers and architecture.endswith(("ForCausalLM", "LMHeadModel")):
        layers["lm_head"] = Layer(embedding.outputs, embedding.inputs)
    return layers


def _tail(module: str) -> str:
    """What of a module's name does not depend on the model around it."""
    stacked = _STACK.search(module)
    return stacked[1] if stacked else module.rsplit(".", 1)[-1]


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def _depth(config: Mapping[str, Any]) -> int | None:
    depth = _text(config).get("num_hidden_layers", _text(config).get("n_layer"))
    return depth if isinstance(depth, int) else None


def shapes_of_config(config: Mapping[str, Any]) -> BaseShapes:
    """The shapes that config.json tells, which holds for the families that share Llama's module names."""
    stacks = dict(_told_stacks(_text(config)))
    return BaseShapes(dict(_llama_like(_text(config))), depth=_depth(config), config=config, stacks=stacks)


def _told_stacks(config: Mapping[str, Any]) -> Iterator[tuple[int, Stack]]:
    count = next((config[key] for key in ("num_experts", "num_local_experts", "n_routed_experts") if key in config), 0)
    hidden, between = config.get("hidden_size"), config.get("moe_intermediate_size", config.get("intermediate_size"))
    if count and hidden and between:
        for number in range(int(config.get("num_hidden_layers") or 0)):
            yield number, Stack(int(count), int(hidden), int(between), apart=False)


def _llama_like(config: Mapping[str, Any]) -> Iterator[tuple[str, Layer]]:
    if "hidden_size" not in config or "num_attention_heads" not in config:
        return
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    head = int(config.get("head_dim") or hidden // heads)
    attention = heads * head
    kept = int(config.get("num_key_value_heads") or heads) * head
    between = int(config.get("intermediate_size") or 0) or None
    widths = {
        "self_attn.q_proj": (hidden, attention),
        "self_attn.k_proj": (hidden, kept),
        "self_attn.v_proj": (hidden, kept),
        "self_attn.o_proj": (attention, hidden),
        "mlp.gate_proj": (hidden, between),
        "mlp.up_proj": (hidden, between),
        "mlp.down_proj": (between, hidden),
    }
    for number in range(int(config.get("num_hidden_layers") or 0)):
        for name, (inputs, outputs) in widths.items():
            yield f"model.layers.{number}.{name}", Layer(inputs, outputs)
    if vocabulary := config.get("vocab_size"):
        yield "model.embed_tokens", Layer(int(vocabulary), hidden, embedding=True)
        yield "lm_head", Layer(hidden, int(vocabulary))
