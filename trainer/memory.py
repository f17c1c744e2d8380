"""How much memory a training needs, part by part: pure sums over counts and shapes, each with its source.

All figures are bytes, for one process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from loradock.trainer import catalogue
from loradock.trainer.recipe import Quantization, Recipe
from loradock.trainer.sizes import Activations, Counts, Sizes

CONTEXT: Final = 10**9
"""CUDA's context and the libraries' workspaces: `benchmarks/plan_accuracy.py` finds 0.72 GB on an H200."""
INTERPRETER: Final = 585_000_000
"""Python with the libraries that train, on a CPU, before anything is loaded: as `benchmarks/plan_accuracy.py` finds."""
HOLES: Final = 0.36
"""On a CPU, of what passes through a layer."""
GPU_HOLES: Final = 0.4
"""On a GPU, of what is kept and made on the way."""

_TOKENS, _COLUMNS = 4096, 32768  # the tile of trl.kernels.chunked_logprob: tokens by words of the vocabulary
_STATE: Final[Mapping[str, tuple[int, float]]] = {
    "adamw_torch": (2, 0),
    "adamw_torch_fused": (2, 0),
    "rmsprop": (1, 0),
    "sgd": (0, 0),
    "paged_adamw_32bit": (2, 4),
    "lion_32bit": (1, 4),
    "adamw_bnb_8bit": (2, 1 + 4 / 256),
    "adamw_8bit": (2, 1 + 4 / 256),
    "paged_adamw_8bit": (2, 1 + 4 / 256),
    "lion_8bit": (1, 1 + 4 / 256),
    "paged_lion_8bit": (1, 1 + 4 / 256),
}
"""For each optimiser, how many numbers it keeps for a weight, and the bytes of each; 0 is those of the weight."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a training runs, as far as its memory goes."""

    cuda: bool
    bytes_per_weight: int
    """Of a base that is not quantised: 2 in bfloat16, 4 in float32."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What lives in memory, part by part, and the most of it at once."""

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    """At the end of the forward pass, or in the layer that is computed again under gradient checkpointing."""
    loss: int
    """The logits, or the tiles of them."""
    runtime: int
    allocator: int
    """Holes that cannot be used."""
    needed: int
    """The peak. It is less than the sum: gradients come as activations go."""


def memory(recipe: Recipe, sizes: Sizes, counts: Counts, kept: Activations, machine: Machine) -> Memory:
    """The memory of one training; `sizes` are the base's, and the recipe says whether activations are checkpointed."""
    checkpointed = recipe.checkpoints_activations(cuda=machine.cuda)
    width = trained_bytes(recipe, machine)
    held = held_activations(kept, sizes.layers, checkpointed=checkpointed)
    working = kept.working + (kept.layer if checkpointed else 0)
    if recipe.quantization:
        working += counts.largest * machine.bytes_per_weight  # one layer is dequantised at a time
    tiles = loss(recipe, sizes, counts, machine)
    static = weights(counts, recipe.quantization, machine) + adapter(counts, width)
    runtime = CONTEXT if machine.cuda else INTERPRETER
    state = optimizer(recipe.training.optim, counts, width, machine)
    gradients = counts.trainable * width
    moving = held + max(tiles, working)
    lost = round(GPU_HOLES * moving) if machine.cuda else holes(recipe, counts, kept, sizes.layers, machine)
    steady = static + runtime + state + lost
    accumulated = gradients if recipe.training.gradient_accumulation_steps > 1 else 0
    return Memory(
        weights=weights(counts, recipe.quantization, machine),
        adapter=adapter(counts, width),
        gradients=gradients,
        optimizer=state,
        activations=held + working,
        loss=tiles,
        runtime=runtime,
        allocator=lost,
        needed=max(
            steady + accumulated + moving,  # in the loss, or in the last layer's backward pass
            steady + gradients + working,  # at the end of the backward pass
            steady + gradients + step(recipe.training.optim, counts, width, machine),
        ),
    )


def trained_bytes(recipe: Recipe, machine: Machine) -> int:
    """The bytes of one trained weight.

    Full fine-tuning trains the base in its own precision; PEFT keeps adapters in float32
    (`autocast_adapter_dtype`); TRL casts those on a quantised base to bfloat16, which is undone in float32.
    """
    full = recipe.method.type == catalogue.FULL
    return machine.bytes_per_weight if full or recipe.quantization else 4


def weights(counts: Counts, quantization: Quantization | None, machine: Machine) -> int:
    """The base's weights.

    Four bits a weight and a float32 scale for each 64; with double quantisation a byte for each 64, and a float32 for
    each 256 of those (https://arxiv.org/abs/2305.14314, section 3). Eight bits and a scale a row
    (https://arxiv.org/abs/2208.07339). What is not quantised, embeddings and head, is float32 then: PEFT's
    prepare_model_for_kbit_training casts it.
    """
    if quantization is None:
        return counts.base * machine.bytes_per_weight
    if quantization.load_in_8bit:
        each = 1.0
    else:
        each = 0.5 + (1 / 64 + 4 / (64 * 256) if quantization.bnb_4bit_use_double_quant else 4 / 64)
    return round(counts.quantizable * each) + (counts.base - counts.quantizable) * 4


def adapter(counts: Counts, width: int) -> int:
    """What the method adds, and what it holds beside it; nothing for full fine-tuning."""
    return counts.adapter * width + counts.buffers


def optimizer(name: str, counts: Counts, width: int, machine: Machine) -> int:
    """The optimiser's state.

    AdamW keeps two numbers a weight (https://arxiv.org/abs/1711.05101), Lion one (https://arxiv.org/abs/2302.06675),
    in the weight's own type with torch; bitsandbytes in 32 bits, or in 8 with a float32 for each block of 256
    (https://arxiv.org/abs/2110.02861). Adafactor keeps a number for each row and column
    (https://arxiv.org/abs/1804.04235). Paged state leaves a GPU when memory is short (arXiv 2305.14314, section 3).
    """
    if name == "adafactor":
        return counts.rows_and_columns * 4
    if name.startswith("paged_") and machine.cuda:
        return 0
    numbers, each = _STATE[name]
    return round(counts.trainable * numbers * (each or width))


def step(name: str, counts: Counts, width: int, machine: Machine) -> int:
    """What the optimiser's step needs for a moment: torch's for-each form, which GPUs take, one more copy.

    https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html, `foreach`.
    """
    return counts.trainable * width if name == "adamw_torch" and machine.cuda else 0


def holes(recipe: Recipe, counts: Counts, kept: Activations, layers: int, machine: Machine) -> int:
    """What the C library keeps on a CPU though it is free.

    Fitted, and not derived: glibc 2.36 asks for more than an aligned block is long, so that a block of the same size
    seldom fits where one was let go of. HOLES of what passes through a layer's forward pass stays as holes, and so does
    the full-precision copy that a quantised layer is made from (docs/plan.md has the measurements).
    """
    made_from = counts.quantizable * machine.bytes_per_weight if recipe.quantization else 0
    return round(HOLES * kept.passing * layers) + made_from


def held_activations(kept: Activations, layers: int, *, checkpointed: bool) -> int:
    """What is kept from the forward pass: each layer's input alone under checkpointing (arXiv 1604.06174)."""
    return kept.boundary * layers if checkpointed else kept.first + kept.layer * (layers - 1)


def loss(recipe: Recipe, sizes: Sizes, counts: Counts, machine: Machine) -> int:
    """Logits and what is made of them.

    TRL's fused head never makes the whole table, but tiles of 4,096 tokens by 32,768 words: one with its kernel on a
    GPU; on a CPU its backward pass holds eight float32 copies and a mask at once (trl/kernels/chunked_logprob.py,
    `_backward_tile`). The hidden states' gradient is float32, and so is that of a head that is trained. What wants
    plain logits, a method or an adapter on the head, has the table itself, its float32 copy and its softmax.
    """
    training, vocabulary, hidden = recipe.training, sizes.vocabulary, sizes.hidden
    tokens = training.per_device_train_batch_size * training.max_length
    if counts.logits:
        return tokens * vocabulary * (machine.bytes_per_weight + 8)
    tile = min(tokens, _TOKENS) * min(vocabulary, _COLUMNS)
    head = vocabulary * hidden * 4 if recipe.method.type == catalogue.FULL else 0
    made = tile * machine.bytes_per_weight if machine.cuda else tile * 33
    return made + tokens * hidden * 4 + head


def sharded(found: Memory, counts: Counts, layers: int, gpus: int) -> int:
    """The peak of one of several GPUs under FSDP, which shares out weights, gradients and state.

    Two layers at a time are there whole: the one that computes and the one that comes
    (https://arxiv.org/abs/2304.11277, section 3.2).
    """
    shared = found.weights + found.adapter + found.gradients + found.optimizer
    layer = found.weights // max(layers, 1) if counts.base else 0
    return shared // gpus + 2 * layer + found.activations + found.loss + found.runtime + found.allocator
