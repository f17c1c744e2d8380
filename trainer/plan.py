"""Whether a training fits, and the cheapest change that makes it fit: decided from the configuration alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from loradock.registry.machine import GIB
from loradock.trainer import catalogue, gpus, hardware, memory
from loradock.trainer.gpus import Gpu
from loradock.trainer.memory import Machine, Memory
from loradock.trainer.recipe import Method, Quantization, Recipe
from loradock.trainer.remembered import Remembered
from loradock.trainer.sizes import Activations, Counts, Sizes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from loradock.trainer.recipe_file import RecipeFile

RESERVE: Final = 0.08
"""The part of a memory that is left free: allocators cannot use all of it."""
_SHORTEST: Final = 128  # tokens; fewer teach little


@dataclass(frozen=True, slots=True)
class Change:
    """Lines of the recipe, by dotted key, and what changing them costs."""

    lines: Mapping[str, Any]
    cost: str

    def __str__(self) -> str:
        return " and ".join(f"{key}: {yaml_text(value)}" for key, value in self.lines.items())


@dataclass(frozen=True, slots=True)
class Fit:
    """What it takes to fit into a memory."""

    available: int
    """Bytes, the reserve taken off."""
    fits: bool
    """As the recipe is."""
    changes: tuple[Change, ...]
    """The fewest of the least harmful changes that make it fit; none when it fits, or when nothing helps."""
    needed: int
    """Bytes, with those changes."""
    gpus: int
    """How many under FSDP, where no change helps; 1 otherwise, and 0 where no number helps."""


def machine(recipe: Recipe, *, cuda: bool) -> Machine:
    """A GPU, which computes in bfloat16 unless the recipe says otherwise, or this CPU, in what it multiplies fast."""
    known = {"bfloat16": 2, "float32": 4}
    width = known.get(recipe.training.dtype) or (2 if cuda else hardware.bytes_per_weight())
    return Machine(cuda=cuda, bytes_per_weight=width)


class Estimator:
    """What recipes need on one base; a question that was asked before is not worked out again.

    Args:
        base: Its configuration, or the directory of it, which is then read when it is needed.
        directory: That of the recipe.
        remembered: What was worked out on this base before.
    """

    def __init__(
        self,
        base: PretrainedConfig | Path,
        directory: Path | None = None,
        remembered: Remembered | None = None,
    ) -> None:
        self._base = base
        self._directory = directory
        self._remembered = remembered or Remembered()

    @cached_property
    def config(self) -> PretrainedConfig:
        """The base's configuration."""
        if not isinstance(self._base, Path):
            return self._base
        from loradock.trainer import meta

        return meta.config(self._base)

    @cached_property
    def sizes(self) -> Sizes:
        """The base's sizes."""
        return Sizes(**self._remembered.ask("sizes", lambda: asdict(Sizes.of(self.config))))

    def check(self, source: RecipeFile) -> None:
        """Raise BadInput with every name of the recipe that the base does not have, as `preflight.check` does."""

        def work() -> bool:
            from loradock.trainer import preflight

            preflight.check(source, self.config)
            return True

        method, training = source.recipe.method, source.recipe.training
        schedule = training.lr_scheduler_type, dict(training.lr_scheduler_kwargs)
        question = f"check {method.model_dump_json()} {schedule} {training.packing}"
        self._remembered.ask(question, work, lasting=_lasts(method))

    def counts(self, recipe: Recipe) -> Counts:
        """The recipe's weights; raises BadInput when its method cannot be put on the base."""

        def work() -> dict[str, Any]:
            from loradock.trainer import count

            return asdict(count.parameters(recipe, self.config, directory=self._directory))

        method = recipe.method
        question = f"counts {method.peft_type} {sorted(method.settings.items())}"
        return Counts(**self._remembered.ask(question, work, lasting=_lasts(method)))

    def needed(self, recipe: Recipe, *, cuda: bool) -> Memory:
        """The memory that the recipe needs, on a GPU or on this machine's CPU."""
        where = machine(recipe, cuda=cuda)
        return memory.memory(recipe, self.sizes, self.counts(recipe), self.kept(recipe, where), where)

    def kept(self, recipe: Recipe, where: Machine) -> Activations:
        """What the recipe's forward pass keeps."""
        training = recipe.training

        def work() -> dict[str, Any]:
            import torch

            from loradock.trainer import activations

            dtype = torch.bfloat16 if where.bytes_per_weight == 2 else torch.float32
            return asdict(activations.follow(recipe, self.config, dtype=dtype))

        batch = training.per_device_train_batch_size, training.max_length
        held = bool(recipe.quantization), where.bytes_per_weight, training.attn_implementation
        question = f"activations {recipe.method.model_dump_json()} {held} {batch}"
        return Activations(**self._remembered.ask(question, work, lasting=_lasts(recipe.method)))


def _lasts(method: Method) -> bool:
    """Whether what is worked out of a method follows from the base and the recipe alone, and from no other file."""
    by_gpu = method.peft_type == "boft"  # which is another one with a GPU
    return not by_gpu and not any("path" in key or key == "adapters" for key in method.settings)


def needed(recipe: Recipe, config: PretrainedConfig, *, cuda: bool) -> Memory:
    """The memory that one recipe needs; raises BadInput when its method cannot be put on the base."""
    return Estimator(config).needed(recipe, cuda=cuda)


def fit(recipe: Recipe, estimator: Estimator, available: int, *, cuda: bool) -> Fit:
    """Hold a recipe against a memory of so many bytes.

    Changes come in the order of least harm, each on top of those before it, until the training fits; those that it
    fits without are then taken back, the costliest first.
    """
    usable = round(available * (1 - RESERVE))
    size = estimator.needed(recipe, cuda=cuda).needed
    if size <= usable:
        return Fit(usable, fits=True, changes=(), needed=size, gpus=1)
    changes: list[Change] = []
    for make in _STEPS:
        for change in make(_changed(recipe, changes), cuda):
            changes = [*changes, change]
            if estimator.needed(_changed(recipe, changes), cuda=cuda).needed <= usable:
                kept = _fewest(recipe, estimator, changes, usable, cuda=cuda)
                size = estimator.needed(_changed(recipe, kept), cuda=cuda).needed
                return Fit(usable, fits=False, changes=tuple(kept), needed=size, gpus=1)
    return Fit(usable, fits=False, changes=(), needed=size, gpus=_gpus(recipe, estimator, usable) if cuda else 0)


def advice(recipe: Recipe, config: PretrainedConfig, available_bytes: int) -> str:
    """One line on what to change for so much memory, on the device that this machine trains on."""
    import torch

    found = fit(recipe, Estimator(config), available_bytes, cuda=torch.cuda.is_available())
    room = f"{found.available / GIB:.1f} GiB"
    if found.fits:
        return f"it should need {found.needed / GIB:.1f} of {room}: end what else uses memory, or lower max_length"
    if found.changes:
        lines = "; ".join(str(change) for change in found.changes)
        return f"set {lines}: that needs about {found.needed / GIB:.1f} of {room}"
    return f"it needs {found.needed / GIB:.1f} GiB and there are {room}: take a smaller base, or more memory"


def side_by_side(recipe: Recipe) -> dict[str, Recipe]:
    """The recipe, and full fine-tuning, LoRA, QLoRA and IA3 with its own rank, batch and length."""
    rank = recipe.method.settings.get("r") if recipe.method.peft_type == "lora" else None
    low = {"r": rank} if rank else {}
    if recipe.method.peft_type == "lora" and "target_modules" in recipe.method.settings:
        low["target_modules"] = recipe.method.settings["target_modules"]
    found = {"this recipe": recipe}
    for title, name, given in (
        ("full", catalogue.FULL, {}),
        ("LoRA", "lora", low),
        ("QLoRA", "qlora", low),
        ("IA3", "ia3", {}),
    ):
        method = Method.model_validate({"type": name, **given})
        quantization = (recipe.quantization or Quantization.model_validate({})) if name == "qlora" else None
        found[title] = recipe.model_copy(update={"method": method, "quantization": quantization})
    return found


def roomy(recipe: Recipe, estimator: Estimator) -> list[tuple[Gpu, bool]]:
    """The common GPUs, and whether the recipe fits each as it is."""
    size = estimator.needed(recipe, cuda=True).needed
    known = {gpu.name: gpu for gpu in gpus.KNOWN}
    return [(known[name], size <= known[name].memory * (1 - RESERVE)) for name in gpus.COMMON]


def _checkpointing(recipe: Recipe, cuda: bool) -> Iterator[Change]:
    if recipe.method.entry.checkpoints and not recipe.checkpoints_activations(cuda=cuda):
        yield Change(
            {"training.gradient_checkpointing": True},
            "activations are computed twice: a step takes about a third longer, and the result is the same",
        )


def _batch(recipe: Recipe, _cuda: bool) -> Iterator[Change]:
    training = recipe.training
    rows = training.per_device_train_batch_size
    if rows > 1:
        yield Change(
            {
                "training.per_device_train_batch_size": 1,
                "training.gradient_accumulation_steps": rows * training.gradient_accumulation_steps,
            },
            "the same rows a step, one at a time: slower where the device is not filled by one row",
        )


def _optimizer(recipe: Recipe, cuda: bool) -> Iterator[Change]:
    if recipe.training.optim in ("adamw_torch", "adamw_torch_fused", "paged_adamw_32bit"):
        yield Change(
            {"training.optim": "adamw_bnb_8bit"},
            "the optimiser remembers in 8 bits: its paper finds no loss of quality (arXiv 2110.02861)",
        )
    if cuda:
        yield Change(
            {"training.optim": "paged_adamw_8bit"},
            "and what it remembers moves to main memory when the GPU is full: slower while it does",
        )


def _quantized(recipe: Recipe, _cuda: bool) -> Iterator[Change]:
    if recipe.method.type == catalogue.FULL:
        yield Change({"method.type": "lora"}, "an adapter is trained in place of all weights")
    kind = recipe.method.peft_type or "lora"
    if recipe.quantization is None and kind in catalogue.QUANTIZED:
        start = str(recipe.method.settings.get("init_lora_weights", ""))
        lines: dict[str, Any] = {"quantization.load_in_4bit": True}
        if start.startswith(catalogue.FROM_BASE):
            lines["method.type"] = "qlora"
        yield Change(lines, "the base in 4 bits: steps are slower, and the base answers a little worse (QLoRA)")
    elif recipe.quantization is not None and recipe.quantization.load_in_8bit:
        yield Change(
            {"quantization.load_in_8bit": False, "quantization.load_in_4bit": True}, "4 bits in place of 8: less exact"
        )


def _length(recipe: Recipe, _cuda: bool) -> Iterator[Change]:
    length = recipe.training.max_length
    while length > _SHORTEST:
        length = max(_SHORTEST, length // 2)
        yield Change({"training.max_length": length}, "longer rows are skipped and counted")


_STEPS: Final[tuple[Callable[[Recipe, bool], Iterator[Change]], ...]] = (
    *(_checkpointing, _batch, _optimizer, _quantized, _length),
)
"""In the order of least harm."""


def _fewest(recipe: Recipe, estimator: Estimator, changes: list[Change], usable: int, *, cuda: bool) -> list[Change]:
    """Without the changes that a later one of the same key replaces, and without those that are not needed."""
    kept = [
        change
        for place, change in enumerate(changes)
        if not any(change.lines.keys() <= later.lines.keys() for later in changes[place + 1 :])
    ]
    for change in reversed(kept[:-1]):
        rest = [other for other in kept if other is not change]
        if estimator.needed(_changed(recipe, rest), cuda=cuda).needed <= usable:
            kept = rest
    return kept


def _changed(recipe: Recipe, changes: list[Change]) -> Recipe:
    for change in changes:
        for key, value in change.lines.items():
            section, _, name = key.partition(".")
            recipe = recipe.model_copy(update={section: _section(recipe, section, name, value)})
    return recipe


def _section(recipe: Recipe, section: str, name: str, value: Any) -> Any:
    if section == "method":
        kept = {key: value for key, value in (recipe.method.model_extra or {}).items() if key != "init_lora_weights"}
        return Method.model_validate({**kept, "type": value})
    if section == "quantization":
        held = recipe.quantization or Quantization.model_validate({})
        return held.model_copy(update={name: value})
    return recipe.training.model_copy(update={name: value})


def _gpus(recipe: Recipe, estimator: Estimator, usable: int) -> int:
    """The smallest number of GPUs, a power of two up to 1,024, with one row on each; 0 when none is enough."""
    alone = recipe.model_copy(
        update={"training": recipe.training.model_copy(update={"per_device_train_batch_size": 1})}
    )
    size, counts = estimator.needed(alone, cuda=True), estimator.counts(alone)
    numbers = (2**power for power in range(1, 11))
    return next((n for n in numbers if memory.sharded(size, counts, estimator.sizes.layers, n) <= usable), 0)


def yaml_text(value: Any) -> str:
    """A value as a recipe has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
