"""A YAML document whose values know their lines, so that a fault can be pointed at."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel

from loradock.registry.errors import first_line


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault, and the line it is on (the first is 1)."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed document: its plain value, its nodes with their marks, and the faults of its syntax."""

    value: Any
    root: yaml.Node | None
    faults: tuple[Problem, ...] = ()

    @property
    def broken(self) -> bool:
        """Whether there is no value to look at."""
        return self.root is None

    @classmethod
    def parse(cls, text: str) -> Document:
        """Parse one YAML document with the safe loader; faults of syntax and keys given twice come as `faults`."""
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            if root is None:
                return cls(None, None, (Problem(1, "it is empty"),))
            return cls(yaml.safe_load(text), root, tuple(_given_twice(root, set())))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            said = ", ".join(part for part in (error.context, error.problem) if part)
            return cls(None, None, (Problem(mark.line + 1 if mark else 1, f"it is not YAML: {said}"),))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            return cls(None, None, (Problem(1, f"it is not YAML: {first_line(error)}"),))

    def problem(self, location: Sequence[int | str], text: str) -> Problem:
        """A fault at `location`, a path of keys and indices; what is not there takes the line of what holds it."""
        node, line, path = self.root, 1, ""
        for part in location:
            found = _child(node, part)
            if found is None:
                path += f".{part}" if isinstance(part, str) else ""
                break
            node, line = found
            path += f".{part}" if isinstance(part, str) else f"[{part}]"
        return Problem(line, f"{path.removeprefix('.')}: {text}" if path else text)


def problem_of(fault: Mapping[str, Any], document: Document, model: type[BaseModel]) -> Problem:
    """One of pydantic's faults as words for the person who wrote the document."""
    location: tuple[int | str, ...] = fault["loc"]
    return document.problem(location, _words(fault, location, model))


def _words(fault: Mapping[str, Any], location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    kind: str = fault["type"]
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        known = sorted(_section(model, location[:-1]).model_fields)
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        return f"is no setting here; did you mean {near[0]}?" if near else f"is no setting here; {', '.join(known)} are"
    if kind == "value_error":
        return str(fault["ctx"]["error"])
    if kind in ("model_type", "model_attributes_type"):
        return "should be a section of settings (key: value)"
    said: str = fault["msg"].replace("Input should be", "should be", 1)
    given = fault["input"]
    return f"{said}, not {given!r}" if isinstance(given, str | int | float | bool) or given is None else said


def _section(model: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel]:
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            break
        model = field.annotation
    return model


def _child(node: yaml.Node | None, part: int | str) -> tuple[yaml.Node, int] | None:
    """The node under `part`, and the line that it is written on."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return value, key.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part].start_mark.line + 1
    return None


def _given_twice(node: yaml.Node, seen: set[int], prefix: str = "") -> Iterator[Problem]:
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines and name != "<<":
                yield Problem(line, f"{prefix}{name}: is given twice, first on line {lines[name]}")
            lines.setdefault(name, line)
            yield from _given_twice(value, seen, f"{prefix}{name}.")
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _given_twice(item, seen, f"{prefix}{index}.")
