"""What to train, as a YAML recipe: parsed once into frozen values, every fault told at once with its line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from registry.base import is_known
from registry.errors import BadInput, NotFound
from registry.refs import parse_name
from trainer.yaml_lines import Document, Problem, problem_of

_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")


def _number(value: Any) -> Any:
    """YAML 1.1 reads `5e-4`, which has no dot, as text."""
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A frozen part of a recipe that refuses keys it does not know, and takes no value for another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Data(Section):
    """Where the rows are, and how many of them only measure."""

    path: Text
    """A chat JSONL file, relative to the recipe."""
    heldout: Number = Field(default=0.1, gt=0, le=0.5)
    """The share of rows that is never trained on; evaluation loss is measured on it."""


class Lora(Section):
    """LoRA, with PEFT's own names (https://arxiv.org/abs/2106.09685)."""

    type: Literal["lora"] = "lora"
    r: int = Field(default=16, ge=1, le=512)
    lora_alpha: int = Field(default=0, ge=1)
    """Twice the rank when it is not given."""
    lora_dropout: Number = Field(default=0.05, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """`all-linear`, which is attention and MLP without the head, or the modules' names."""
    use_rslora: bool = False

    @model_validator(mode="before")
    @classmethod
    def _alpha(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "lora_alpha" in given:
            return given
        rank = given.get("r", 16)
        return given | {"lora_alpha": 2 * rank if type(rank) is int and rank > 0 else 1}

    @field_validator("target_modules", mode="plain")
    @classmethod
    def _targets(cls, given: Any) -> Any:
        if given == "all-linear":
            return given
        if isinstance(given, list | tuple) and given and all(isinstance(name, str) and name for name in given):
            return tuple(dict.fromkeys(given))
        raise ValueError("should be all-linear, or a list of module names such as [q_proj, v_proj]")


class Training(Section):
    """How long, how fast and how much at a time, with the names of TrainingArguments and SFTConfig."""

    num_train_epochs: Number | None = Field(default=None, gt=0)
    """3 when max_steps is not given either."""
    max_steps: int | None = Field(default=None, ge=1)
    learning_rate: Number = Field(default=2e-4, gt=0, le=1)
    per_device_train_batch_size: int = Field(default=4, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    max_length: int = Field(default=1024, ge=8)
    """Tokens of the longest row; longer ones are left out, and counted."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    warmup_steps: Number = Field(default=0.03, ge=0)
    """Steps, or below 1 a share of all steps."""
    weight_decay: Number = Field(default=0.0, ge=0)
    logging_steps: int = Field(default=5, ge=1)
    eval_steps: int | None = Field(default=None, ge=1)
    """Evaluation happens before training and at its end in any case."""
    max_grad_norm: Number = Field(default=1.0, gt=0)

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


class Recipe(Section):
    """All that decides what comes out of a training."""

    name: Text
    """The run's name, and the adapter's."""
    base: Text
    """A directory, a Hub id, or `pypi:NAME==VERSION`; a relative directory is relative to the recipe."""
    data: Data
    method: Lora = Field(default_factory=lambda: Lora.model_validate({}))
    training: Training = Field(default_factory=lambda: Training.model_validate({}))
    seed: int = Field(default=42, ge=0, lt=2**32)

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


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """A recipe, with the text and the place it came from."""

    path: Path
    text: str
    """Verbatim; it is kept with the run."""
    recipe: Recipe

    @property
    def directory(self) -> Path:
        """What the recipe's relative paths are relative to."""
        return self.path.parent

    @property
    def data_path(self) -> Path:
        """The data file."""
        return self.directory / self.recipe.data.path


def load(path: Path) -> RecipeFile:
    """Read a recipe; raises NotFound, or BadInput with every fault as `file:line: key: what is wrong`."""
    if not path.is_file():
        raise NotFound(f"there is no recipe {path}", hint="give the path of a YAML recipe")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} cannot be used", problems=[f"{path.name}: it is not UTF-8 text"]) from error
    document = Document.parse(text)
    problems = list(document.faults)
    recipe: Recipe | None = None
    if not document.broken:
        try:
            recipe = Recipe.model_validate(document.value)
        except ValidationError as error:
            problems += (problem_of(fault, document, Recipe) for fault in error.errors(include_url=False))
        problems += [*_missing_data(document, path.parent), *_unknown_base(document, path.parent)]
    if problems or recipe is None:
        ordered = sorted(problems, key=lambda problem: problem.line)
        raise BadInput(
            f"{path} cannot be used", problems=[f"{path.name}:{problem.line}: {problem.text}" for problem in ordered]
        )
    return RecipeFile(path, text, recipe)


def _missing_data(document: Document, directory: Path) -> list[Problem]:
    value = document.value.get("data") if isinstance(document.value, dict) else None
    given = value.get("path") if isinstance(value, dict) else None
    if not isinstance(given, str) or not given:
        return []
    path = directory / given
    if not path.is_file():
        return [document.problem(("data", "path"), f"there is no file {given}")]
    if path.stat().st_size == 0:
        return [document.problem(("data", "path"), f"{given} is empty")]
    return []


def _unknown_base(document: Document, directory: Path) -> list[Problem]:
    given = document.value.get("base") if isinstance(document.value, dict) else None
    if not isinstance(given, str) or not given or is_known(given, relative_to=directory):
        return []
    return [document.problem(("base",), f"{given} is no directory, no ORG/NAME on the Hub and no pypi:NAME==VERSION")]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((prefix + key, ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)))
    return found
