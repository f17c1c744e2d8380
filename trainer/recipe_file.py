"""A recipe as a file: read, parsed once, and every fault told at once with its line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from loradock.registry.base import is_known
from loradock.registry.errors import BadInput, NotFound
from loradock.trainer import hyperparameters
from loradock.trainer.recipe import Method, Quantization, Recipe, is_data_set
from loradock.trainer.yaml_lines import Document, Problem, problem_of


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """A recipe, with the text and the place it came from."""

    path: Path
    text: str
    """Verbatim; it is kept with the run."""
    recipe: Recipe
    original: str = ""
    """Another trainer's recipe that `text` is the translation of; kept with the run too."""
    origins: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)
    """Where in `original` each of our dotted keys comes from."""

    @property
    def directory(self) -> Path:
        """What the recipe's relative paths are relative to."""
        return self.path.parent

    def fault(self, location: tuple[str | int, ...], text: str) -> str:
        """One fault of the recipe's values as `file:line: key: what is wrong`, in the words of whoever wrote it."""
        if self.original:
            theirs = self.origins.get(".".join(map(str, location[:2])))
            location = (*theirs, *location[2:]) if theirs else ()
        problem = Document.parse(self.original or self.text).problem(location, text)
        return f"{self.path.name}:{problem.line}: {problem.text}"


def load(path: Path) -> RecipeFile:
    """Read a recipe; raises NotFound, or BadInput with every fault as `file:line: key: what is wrong`."""
    return parse(read(path), path)


def read(path: Path) -> str:
    """A recipe's text; raises NotFound, or BadInput when it is no text."""
    if not path.is_file():
        raise NotFound(f"there is no recipe {path}", hint="give the path of a YAML recipe")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} cannot be used", problems=[f"{path.name}: it is not UTF-8 text"]) from error


def parse(text: str, path: Path) -> RecipeFile:
    """A recipe from its text, `path` being where it stands; raises BadInput as `load` does."""
    document = Document.parse(text)
    problems = list(document.faults)
    recipe: Recipe | None = None
    if not document.broken:
        value = document.value
        if isinstance(value, dict) and "name" not in value:
            value = {"name": path.stem, **value}
        try:
            recipe = Recipe.model_validate(value)
        except ValidationError as error:
            problems += (problem_of(fault, document, Recipe) for fault in error.errors(include_url=False))
        problems += [*_missing_data(document, path.parent), *_unknown_base(document, path.parent)]
        problems += _method_faults(document)
    if problems or recipe is None:
        ordered = sorted(problems, key=lambda problem: problem.line)
        raise BadInput(
            f"{path} cannot be used", problems=[f"{path.name}:{problem.line}: {problem.text}" for problem in ordered]
        )
    return RecipeFile(path, text, recipe)


def _method_faults(document: Document) -> list[Problem]:
    """What PEFT would not take, whatever else is wrong with the recipe."""
    value = document.value if isinstance(document.value, dict) else {}
    given, quantization = value.get("method", {}), value.get("quantization")
    try:
        method = Method.model_validate({"type": given} if isinstance(given, str) else given)
        held = None if quantization is None else Quantization.model_validate(quantization)
    except ValidationError:
        return []
    if held is None and not method.model_extra:
        return []  # what a name stands for has no fault
    if held is None and method.entry.quantized:
        held = Quantization()
    return [document.problem(("method", key), text) for key, text in hyperparameters.faults(method, held)]


def _missing_data(document: Document, directory: Path) -> list[Problem]:
    found = document.value.get("data") if isinstance(document.value, dict) else None
    location: tuple[int | str, ...] = ("data",)
    if isinstance(found, dict):
        found, location = found.get("path"), ("data", "path")
    given = [(location, found)]
    if isinstance(found, list):
        given = [((*location, index), path) for index, path in enumerate(found)]
    return [
        document.problem(place, fault)
        for place, path in given
        if isinstance(path, str) and path and (fault := _path_fault(path, directory / Path(path).expanduser()))
    ]


def _path_fault(given: str, path: Path) -> str:
    if path.is_file() and path.stat().st_size == 0:
        return f"{given} is empty"
    there = path.exists() or is_data_set(given)
    return "" if there else f"there is no file or directory {given}, and it is no ORG/NAME on the Hub"


def _unknown_base(document: Document, directory: Path) -> list[Problem]:
    given = document.value.get("base") if isinstance(document.value, dict) else None
    if not isinstance(given, str) or not given or is_known(given, relative_to=directory):
        return []
    return [document.problem(("base",), f"{given} is no directory, no ORG/NAME on the Hub and no pypi:NAME==VERSION")]
