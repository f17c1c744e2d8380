"""Recipes of other trainers: told apart by their keys, and translated into ours with nothing dropped in silence."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from loradock.registry.errors import BadInput
from loradock.registry.refs import parse_name
from loradock.trainer import hyperparameters, recipe_file
from loradock.trainer import recipe as recipes
from loradock.trainer.dialects import axolotl, axolotl_keys, llamafactory, llamafactory_keys
from loradock.trainer.dialects.draft import Draft
from loradock.trainer.dialects.places import Places
from loradock.trainer.dialects.source import Source
from loradock.trainer.yaml_lines import Document, Problem, problem_of


class Dialect(StrEnum):
    """A trainer whose recipes are understood."""

    AXOLOTL = axolotl_keys.NAME
    LLAMA_FACTORY = llamafactory_keys.NAME


_OURS: Final = {"base", "data"}
_MARKS: Final[Mapping[Dialect, tuple[str, frozenset[str]]]] = {
    Dialect.AXOLOTL: (
        "base_model",
        frozenset(
            {"datasets", "pretraining_dataset", "adapter", "micro_batch_size", "sequence_len", "num_epochs", "rl"}
        ),
    ),
    Dialect.LLAMA_FACTORY: (
        "model_name_or_path",
        frozenset({"stage", "finetuning_type", "template", "cutoff_len", "lora_rank", "lora_target", "dataset"}),
    ),
}
"""The key that names the base, and keys of which one must be beside it."""


@dataclass(frozen=True, slots=True)
class Translation:
    """Our recipe in place of another trainer's."""

    dialect: str
    recipe_text: str
    """YAML, with a comment at each value that was worked out or means something else here."""
    warnings: tuple[str, ...]
    """Every key that changes nothing here, or means something else, as `file:line: keys: why`."""
    origins: Mapping[str, tuple[str | int, ...]]
    """Where each of our dotted keys comes from."""


def detect(text: str) -> Dialect | None:
    """Whose recipe a YAML text is, by keys that only one trainer has; None for our own and for anything else."""
    return _dialect(Document.parse(text).value)


def load(path: Path, say: Callable[[str], None]) -> recipe_file.RecipeFile:
    """Read a recipe, whoever's it is; raises NotFound or BadInput. What a translation changes is said."""
    text = recipe_file.read(path)
    if (found := translate(text, path)) is None:
        return recipe_file.parse(text, path)
    for warning in found.warnings:
        say(f"warning: {warning}")
    say(f"{path} is taken as {found.dialect}'s; `loradock translate {path}` shows it as our recipe")
    return replace(recipe_file.parse(found.recipe_text, path), original=text, origins=found.origins)


def _dialect(value: Any) -> Dialect | None:
    if not isinstance(value, Mapping) or value.keys() >= _OURS:
        return None
    for dialect, (base, marks) in _MARKS.items():
        if base in value and marks & value.keys():
            return dialect
    return None


def translate(text: str, path: Path, *, directory: Path | None = None, absolute: bool = False) -> Translation | None:
    """Our recipe in place of another trainer's `text`, which stands at `path`.

    Args:
        text: The other trainer's YAML.
        path: Where it stands; its name is told in faults, and gives the recipe its name.
        directory: What relative paths in our recipe start from; the directory of `path` unless it is given.
        absolute: Write absolute paths instead.

    Returns:
        None when the text is our own recipe, or no recipe of a trainer that is known.

    Raises:
        BadInput: With every key that cannot be honoured, as `file:line: key: why`.
    """
    document = Document.parse(text)
    if (dialect := _dialect(document.value)) is None:
        return None
    source, draft = Source(document, dialect), Draft()
    source.problems += document.faults
    written = None if absolute else directory if directory is not None else path.parent
    places = Places(Path.cwd(), path.parent, written)
    draft.set("name", _name(path.stem))
    (axolotl if dialect is Dialect.AXOLOTL else llamafactory).translate(source, draft, places)
    source.problems += _faults(source, draft)
    if source.problems:
        ordered = sorted(source.problems, key=lambda problem: problem.line)
        raise BadInput(
            f"{path} is {_article(dialect)} {dialect} recipe that cannot be honoured",
            problems=[f"{path.name}:{problem.line}: {problem.text}" for problem in ordered],
            hint="take these keys out, or change them as they say; docs/dialects.md tells what becomes of every key",
        )
    warnings = source.warnings(path.name)
    return Translation(str(dialect), draft.text(_head(dialect, path, warnings)), warnings, draft.origins())


def _article(dialect: Dialect) -> str:
    return "an" if dialect is Dialect.AXOLOTL else "a"


def _name(stem: str) -> str:
    """The file's name as a run's name."""
    name = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")[:63]
    try:
        return parse_name(name)
    except BadInput:
        return "translated"


def _faults(source: Source, draft: Draft) -> list[Problem]:
    """What our recipe refuses of the values, told where the other recipe gives them.

    Beside other faults, what our recipe misses is no fault of its own.
    """
    tree = draft.tree()
    problems: list[Problem] = []
    try:
        recipe = recipes.Recipe.model_validate(tree)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        if source.problems:
            faults = [fault for fault in faults if draft.origin(fault["loc"])]
        written = Document.parse(draft.text(""))
        problems += (_told(source, draft, f["loc"], problem_of(f, written, recipes.Recipe).text) for f in faults)
        method = {key: tree[key] for key in ("method", "quantization") if key in tree}
        try:
            recipe = recipes.Recipe.model_validate({"name": "x", "base": "x", "data": "x", **method})
        except ValidationError:
            return problems
    found = hyperparameters.faults(recipe.method, recipe.quantization)
    return problems + [_told(source, draft, ("method", key), f"method.{key}: {said}") for key, said in found]


def _told(source: Source, draft: Draft, ours: tuple[str | int, ...], said: str) -> Problem:
    theirs = draft.origin(ours)
    if theirs is None:
        return Problem(1, said)
    return source.document.problem(theirs, said.partition(": ")[2] or said)


def _head(dialect: Dialect, path: Path, warnings: tuple[str, ...]) -> str:
    lines = [f"Translated from {_article(dialect)} {dialect} recipe, {path.name}."]
    if warnings:
        lines += ["", "What changes nothing here, or means something else:"]
    for warning in warnings:
        lines += textwrap.wrap(
            f"- {warning}", 118, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    return "\n".join(lines)
