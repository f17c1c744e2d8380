"""TRL's and transformers' trainers with what a recipe needs beyond them: order, checkpoints, and the odd methods."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import SFTTrainer

from loradock.trainer import methods, scattered
from loradock.trainer.processes import Crew

WEIGHTS: Final = "trained.safetensors"
_RANKS: Final = "ranks.json"
_IMPORTANCE: Final = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # what AdaLoRA's allocator remembers of every weight


class ByLength(Sampler[int]):  # type: ignore[misc]  # torch has no types here
    """Rows in an order that puts similar lengths into one step; it follows from seed and epoch alone.

    So an interrupted training goes on with the rows that it would have had, and several processes share the steps of
    one. `step` is the number of rows in one optimiser step, over all processes.
    """

    def __init__(self, lengths: Sequence[int], *, step: int, seed: int) -> None:
        self._lengths = list(lengths)
        self._step = step
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called before each pass over the data."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return iter(get_length_grouped_indices(self._lengths, self._step, generator=generator))


class _Ours(Trainer):  # type: ignore[misc]  # the libraries' lazy modules have no types
    """What both trainers do differently."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows = self.train_dataset if train_dataset is None else train_dataset
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return ByLength([len(ids) for ids in rows["input_ids"]], step=step, seed=self.args.seed)

    def get_train_dataloader(self) -> Any:
        """Batches whose epoch reaches the sampler, also where accelerate skips those of before an interruption.

        It looks for the sampler one level down, which is its own shard of the batches where several processes train.
        """
        loader = super().get_train_dataloader()
        batches = loader.batch_sampler
        batches.sampler = getattr(batches, "batch_sampler", batches).sampler
        return loader

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """Packed rows have no mask and no padding; without one, tokens that pad elsewhere would not be counted."""
        mask = inputs["attention_mask"] if "attention_mask" in inputs else torch.ones_like(inputs["input_ids"])
        super()._track_num_input_tokens({**inputs, "attention_mask": mask})

    # Evaluation is told in nats a token. transformers takes the mean of the batches' means, which follows from how
    # rows fall into batches.

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The loop, with its loss over all tokens alike."""
        self._nats = self._counted = 0.0
        output = super().evaluation_loop(*args, **kwargs)
        sums = self.accelerator.reduce(torch.tensor([self._nats, self._counted], device=self.args.device))
        prefix = kwargs.get("metric_key_prefix", "eval")
        output.metrics[f"{prefix}_loss"] = float(sums[0] / sums[1])
        return output

    def _count(self, loss: torch.Tensor, labels: torch.Tensor) -> None:
        if not self.model.training:
            tokens = int((labels[:, 1:] != -100).sum())
            self._nats += float(loss) * tokens
            self._counted += tokens

    # A checkpoint holds every weight that is trained, under its own name. PEFT's form of an adapter is for those who
    # use it: of the prompt methods it keeps the outcome and not the encoder, and training could not go on from it.

    def _save(self, output_dir: str, state_dict: Any = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._save(output_dir, state_dict)
            return
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.contiguous() for name, tensor in _trained(self.model).items()}
        save_file(weights, Path(output_dir) / WEIGHTS)
        if (config := _adalora(self.model)) and config.rank_pattern:
            (Path(output_dir) / _RANKS).write_text(json.dumps(config.rank_pattern))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        scattered.gather(Crew(self.args.process_index, self.args.world_size), Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        load_weights(self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
            return
        # The others' weights are thrown away, and their machines may not have the main process's checkpoints.
        if self.is_world_process_zero():
            load_weights(self.model, Path(self.state.best_model_checkpoint))


class Fused(_Ours, SFTTrainer):  # type: ignore[misc]  # as above
    """TRL's trainer, whose loss never makes the whole table of logits."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss, and AdaLoRA's orthogonality, which PEFT adds only to a loss that the model itself computes."""
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._count(found[0] if return_outputs else found, inputs["labels"])
        if self.model.training and (config := _adalora(self.model)):
            share = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            extra = config.orth_reg_weight * _orthogonality(self.model) / share
            return (found[0] + extra, *found[1:]) if return_outputs else found + extra
        return found


class Plain(_Ours):
    """transformers' trainer, for methods whose models give only plain logits."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if methods.kind_of(self.model.peft_config["default"]) == "cpt":
            self.model_accepts_loss_kwargs = False  # its loss is a mean of its own, whatever the step's tokens are

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's own loss in training, and in evaluation, where some add to it, that of the rows alone.

        Methods that serve several tasks are trained on task 0.
        """
        tasks = methods.task_ids(self.model.peft_config["default"], len(inputs["input_ids"]), self.args.device)
        inputs = {**inputs, **tasks, "use_cache": False}
        if self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        logits = outputs.logits[:, -labels.shape[1] : -1]  # what stands before the text is none of it
        loss = cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten())
        self._count(loss, labels)
        return (loss, outputs) if return_outputs else loss


class MovesRanks(TrainerCallback):  # type: ignore[misc]  # as above
    """AdaLoRA's allocator, told of every step while its gradients are there."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Move the ranks."""
        getattr(model, "module", model).base_model.update_and_allocate(state.global_step)


def load_weights(model: Any, checkpoint: Path) -> None:
    """Put a checkpoint's weights into the model that they were trained in."""
    found = load_file(checkpoint / WEIGHTS)
    into = _trained(model)
    if (config := _adalora(model)) and (checkpoint / _RANKS).is_file():
        config.rank_pattern = json.loads((checkpoint / _RANKS).read_text())
    allocator = _allocator(model)
    for name, tensor in found.items():
        if name in into:
            into[name].copy_(tensor)
        elif allocator and name.startswith("allocator."):
            _, kind, weight = name.split(".", 2)
            getattr(allocator, kind)[weight] = tensor.to(model.device)
    if missing := into.keys() - found.keys():
        raise KeyError(f"{checkpoint} lacks {min(missing)}")


def _trained(model: Any) -> dict[str, torch.Tensor]:
    """Every weight that training changes, by name."""
    found = {
        name: parameter.data
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or "ranknum" in name
    }
    if allocator := _allocator(model):
        for kind in _IMPORTANCE:
            found |= {
                f"allocator.{kind}.{name}": tensor.contiguous() for name, tensor in getattr(allocator, kind).items()
            }
    return found


def _adalora(model: Any) -> Any:
    config = model.peft_config["default"] if isinstance(model, PeftModel) else None
    return config if config is not None and config.peft_type.value == "ADALORA" else None


def _allocator(model: Any) -> Any:
    return model.base_model.rankallocator if _adalora(model) else None


def _orthogonality(model: Any) -> torch.Tensor:
    """How far AdaLoRA's factors are from orthonormal, by Frobenius norm, mean over the factors.

    https://arxiv.org/abs/2303.10512, equation 4, as PEFT computes it.
    """
    norms = []
    for name, weight in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            product = weight @ weight.T if "lora_A" in name else weight.T @ weight
            norms.append(torch.linalg.norm(product - torch.eye(len(product), device=weight.device)))
    return torch.stack(norms).mean()
