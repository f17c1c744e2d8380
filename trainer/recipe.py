"""What to train: frozen values, parsed once, that refuse what cannot be meant."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from loradock.registry.base import is_hub_id
from loradock.registry.errors import BadInput
from loradock.registry.refs import parse_name
from loradock.trainer import catalogue

_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")


def as_number(value: Any) -> Any:
    """A number that YAML 1.1 took for text: `5e-4`, which has no dot."""
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


Number = Annotated[float, BeforeValidator(as_number), Field(allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]


ENDINGS: Final = (".jsonl", ".json", ".csv", ".parquet")
"""Of the files that rows are read from."""
COLUMNS: Final = (
    *("messages", "role", "content", "instruction", "input", "output", "system", "prompt", "completion", "text"),
)
"""Our names for what a row holds; `role` and `content` are those of one message."""
Optimizer = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_bnb_8bit",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_8bit",
    "adafactor",
    "sgd",
    "rmsprop",
]
"""transformers' names of the optimisers that need nothing more than bitsandbytes."""
Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "warmup_stable_decay",
]
"""transformers' names of the schedules."""


class Section(BaseModel):
    """A frozen part of a recipe that refuses keys it does not know, and takes no value for another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Data(Section):
    """Where the rows are, what they look like, and how many of them only measure."""

    path: tuple[Text, ...]
    """A file (.jsonl, .json, .csv, .parquet), a directory of them, `ORG/NAME[@REVISION]` on the Hub, or several."""
    split: Text = "train"
    """The split of a Hub data set that is read."""
    subset: Text | None = None
    """The configuration of a Hub data set that is read, where it has several."""
    format: Literal["auto", "chat", "alpaca", "prompt_completion", "text"] = "auto"
    """What a row looks like; `auto` looks at the columns."""
    columns: Mapping[Text, Text] = Field(default_factory=dict)
    """The file's own names for our columns: `{instruction: question, output: answer}`."""
    template: Literal["alpaca", "chat"] = "alpaca"
    """How instruction rows are written: the Alpaca template, or the base's chat template."""
    heldout: Number = Field(default=0.1, ge=0, le=0.5)
    """The share of rows that is never trained on; evaluation loss is measured on it. 0 turns evaluation off."""

    @field_validator("path", mode="before")
    @classmethod
    def _paths(cls, given: Any) -> Any:
        if isinstance(given, str):
            return (given,)
        if not isinstance(given, list | tuple) or not given:
            raise ValueError("should be a path, or a list of paths")
        return tuple(given)

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, columns: Mapping[str, str]) -> Mapping[str, str]:
        if unknown := sorted(columns.keys() - set(COLUMNS)):
            raise ValueError(f"{', '.join(unknown)} is none of our columns: {', '.join(COLUMNS)}")
        return columns


class Quantization(Section):
    """How the base's linear layers are held in training, with bitsandbytes' names (https://arxiv.org/abs/2305.14314)."""

    load_in_4bit: bool = True
    load_in_8bit: bool = False
    """https://arxiv.org/abs/2208.07339"""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    bnb_4bit_use_double_quant: bool = True
    bnb_4bit_compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """`auto` is bfloat16 where the hardware multiplies it, else float32."""

    @model_validator(mode="before")
    @classmethod
    def _eight(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("load_in_8bit") is True and "load_in_4bit" not in given:
            return given | {"load_in_4bit": False}
        return given

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.load_in_4bit == self.load_in_8bit:
            raise ValueError("choose one of load_in_4bit and load_in_8bit")
        return self

    @property
    def kind(self) -> str:
        """`nf4`, `fp4` or `int8`, as a version's base tells it."""
        return "int8" if self.load_in_8bit else self.bnb_4bit_quant_type


class Method(Section):
    """A method by name, and any of its hyper-parameters by PEFT's own names."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    type: Text = "lora"

    @field_validator("type")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in catalogue.ENTRIES:
            near = difflib.get_close_matches(name.lower(), catalogue.ENTRIES, n=1, cutoff=0.5)
            raise ValueError(
                f"there is no method {name!r}; "
                + (f"did you mean {near[0]}?" if near else "`loradock methods` lists them")
            )
        return name

    @property
    def entry(self) -> catalogue.Entry:
        """What is known of the method."""
        return catalogue.ENTRIES[self.type]

    @property
    def peft_type(self) -> str:
        """PEFT's type in lower case; empty for full fine-tuning."""
        return "" if self.type == catalogue.FULL else self.entry.peft_type or self.type

    @property
    def settings(self) -> dict[str, Any]:
        """The hyper-parameters that the recipe sets, under PEFT's names, the name's own ones included."""
        return {**self.entry.settings, **(self.model_extra or {})}


class Training(Section):
    """How long, how fast and how much at a time, with the names of TrainingArguments and SFTConfig."""

    num_train_epochs: Number | None = Field(default=None, gt=0)
    """3 when max_steps is not given either."""
    max_steps: int | None = Field(default=None, ge=1)
    learning_rate: Number | None = Field(default=None, gt=0, le=1)
    """The method's own default when it is not given: 2e-4 for LoRA."""
    per_device_train_batch_size: int = Field(default=4, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    max_length: int = Field(default=1024, ge=8)
    """Tokens of the longest row; longer ones are left out, and counted."""
    completion_only_loss: bool = True
    """Whether only completions carry loss; text rows carry it whole in any case."""
    packing: bool = False
    """Whether rows share a sequence; refused where the model's attention does not keep them apart."""
    optim: Optimizer = "adamw_torch"
    lr_scheduler_type: Schedule = "cosine"
    lr_scheduler_kwargs: Mapping[Text, Any] = Field(default_factory=dict)
    warmup_steps: Number = Field(default=0.03, ge=0)
    """Steps, or below 1 a share of all steps."""
    weight_decay: Number = Field(default=0.0, ge=0)
    adam_beta1: Number = Field(default=0.9, ge=0, lt=1)
    adam_beta2: Number = Field(default=0.999, ge=0, lt=1)
    adam_epsilon: Number = Field(default=1e-8, gt=0)
    max_grad_norm: Number = Field(default=1.0, ge=0)
    neftune_noise_alpha: Number | None = Field(default=None, gt=0)
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """The base's precision; `auto` is bfloat16 where the hardware multiplies it, else float32."""
    gradient_checkpointing: bool | None = None
    """Whether activations are computed again instead of kept; on with a GPU unless it is given."""
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] | None = None
    """transformers' choice unless it is given."""
    logging_steps: int = Field(default=5, ge=1)
    eval_steps: Number | None = Field(default=None, gt=0)
    """Steps, or below 1 a share of all steps. Evaluation happens before training and at its end in any case."""
    save_steps: int | None = Field(default=None, ge=1)
    """Steps between two checkpoints, for `--resume`; a tenth of the training unless it is given."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop after so many evaluations without a better held-out loss."""
    load_best_model_at_end: bool = True
    """Whether the adapter is that of the best evaluation, where there is more than the last."""

    @model_validator(mode="after")
    def _best_is_saved(self) -> Self:
        every, steps = self.eval_steps, self.save_steps
        if self.load_best_model_at_end and every and steps and (every < 1 or steps % every):
            raise ValueError(
                f"save_steps should be a multiple of eval_steps, which is {every:g}, for the best evaluation to be kept"
            )
        return self

    @field_validator("eval_steps")
    @classmethod
    def _whole(cls, steps: float | None) -> float | None:
        if steps is not None and steps > 1 and steps % 1:
            raise ValueError(f"should be a whole number of steps, or a share below 1, not {steps:g}")
        return steps

    @model_validator(mode="before")
    @classmethod
    def _epochs(cls, given: Any) -> Any:
        if isinstance(given, dict) and not {"num_train_epochs", "max_steps"} & given.keys():
            return given | {"num_train_epochs": 3.0}
        return given

    @field_validator("max_steps")
    @classmethod
    def _one_length(cls, steps: int | None, info: ValidationInfo) -> int | None:
        if steps is not None and info.data.get("num_train_epochs") is not None:
            raise ValueError("num_train_epochs is given too: choose one of the two")
        return steps

    @field_validator("early_stopping_patience")
    @classmethod
    def _something_to_watch(cls, patience: int | None, info: ValidationInfo) -> int | None:
        if patience is not None and info.data.get("eval_steps") is None:
            raise ValueError("needs eval_steps, the steps between two evaluations")
        return patience


class Recipe(Section):
    """All that decides what comes out of a training."""

    name: Text
    """The run's name, and the adapter's; the file's name without its ending when it is not given."""
    base: Text
    """A directory, a Hub id, or `pypi:NAME==VERSION`; a relative directory is relative to the recipe."""
    quantization: Quantization | None = None
    """None holds the base in `training.dtype`; `qlora` and `loftq` bring one along."""
    data: Data
    method: Method = Field(default_factory=Method)
    training: Training = Field(default_factory=lambda: Training.model_validate({}))
    samples: int = Field(default=4, ge=0, le=64)
    """Held-out prompts that are answered before and after, and kept as a table with the run."""
    seed: int = Field(default=42, ge=0, lt=2**32)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        """`data: rows.jsonl` and `method: dora` stand for a section with that alone."""
        if not isinstance(given, dict):
            return given
        for key, field in (("data", "path"), ("method", "type")):
            if isinstance(given.get(key), str | list):
                given = given | {key: {field: given[key]}}
        return given

    @model_validator(mode="after")
    def _quantized(self) -> Self:
        if self.quantization is None and self.method.entry.quantized:
            return self.model_copy(update={"quantization": Quantization()})
        return self

    @field_validator("training")
    @classmethod
    def _computes_again(cls, training: Training, info: ValidationInfo) -> Training:
        method = info.data.get("method")
        if method and training.gradient_checkpointing and not method.entry.checkpoints:
            raise ValueError(
                f"gradient_checkpointing runs layers twice, which {method.type} does not bear: leave it out"
            )
        return training

    def checkpoints_activations(self, *, cuda: bool) -> bool:
        """Whether activations are computed again in the backward pass.

        Where it is not said, they are on a GPU, if the method bears it.
        """
        given = self.training.gradient_checkpointing
        return cuda and self.method.entry.checkpoints if given is None else given

    @property
    def learning_rate(self) -> float:
        """The optimiser's step at its peak."""
        return self.training.learning_rate or self.method.entry.learning_rate

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        try:
            return parse_name(name)
        except BadInput as error:
            raise ValueError(f"{error}: {error.hint}") from error

    def parameters(self) -> dict[str, str]:
        """Every value that is set, by its dotted path, as text."""
        return dict(_flat(self.model_dump(exclude_none=True)))


def is_data_set(path: str) -> bool:
    """Whether a path that is not there has the form of a data set on the Hub, and not of a data file."""
    return is_hub_id(path) and Path(path).suffix not in ENDINGS


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Values by dotted path; keys of the user's own are no part of it, since MLflow does not take every name."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and not prefix:
            found += _flat(value, f"{key}.")
        elif isinstance(value, Mapping):
            found += [(prefix + key, json.dumps(value, ensure_ascii=False, default=str))] if value else []
        else:
            found.append((prefix + key, ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)))
    return found
