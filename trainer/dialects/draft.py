"""Our recipe while it is put together: each value, where it came from, and what to say of it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from loradock.trainer import recipe as recipes

_WIDTH: Final = 120
_ORDER: Final = (
    *recipes.Recipe.model_fields,
    "method.type",
    *(f"quantization.{name}" for name in recipes.Quantization.model_fields),
    *(f"data.{name}" for name in recipes.Data.model_fields),
    *(f"training.{name}" for name in recipes.Training.model_fields),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One value, the place in the other recipe that it came from, and a comment."""

    value: Any
    origin: tuple[str | int, ...] = ()
    comment: str = ""


@dataclass(slots=True)
class Draft:
    """The values by our dotted keys."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def get(self, key: str) -> Any:
        """The value of one of our keys, or None."""
        return self.entries[key].value if key in self.entries else None

    def set(self, key: str, value: Any, origin: tuple[str | int, ...] = (), comment: str = "") -> None:
        """Give one of our keys its value."""
        self.entries[key] = Entry(value, origin, comment)

    def default(self, key: str, value: Any, comment: str) -> None:
        """Give one of our keys a value that the other recipe leaves unsaid."""
        if key not in self.entries:
            self.set(key, value, (), comment)

    def tree(self) -> dict[str, Any]:
        """The recipe as nested mappings, in the recipe's own order."""
        found: dict[str, Any] = {}
        for key, entry in sorted(self.entries.items(), key=lambda item: _rank(item[0])):
            section, _, name = key.partition(".")
            if name:
                found.setdefault(section, {})[name] = entry.value
            else:
                found[section] = entry.value
        return found

    def origin(self, location: tuple[str | int, ...]) -> tuple[str | int, ...] | None:
        """Where the value at one of our locations came from; None when it is no value of the other recipe."""
        entry = self.entries.get(".".join(map(str, location[:2]))) or self.entries.get(str(location[0]))
        return entry.origin or None if entry else None

    def origins(self) -> dict[str, tuple[str | int, ...]]:
        """Where each value came from, but for those that are no values of the other recipe."""
        return {key: entry.origin for key, entry in self.entries.items() if entry.origin}

    def text(self, head: str) -> str:
        """The recipe as YAML under the lines of `head`, with its comments."""
        lines = [f"# {line}".rstrip() for line in head.splitlines()]
        for section, value in self.tree().items():
            if isinstance(value, Mapping) and section not in self.entries:
                lines += ["", f"{section}:"]
                for name in value:
                    lines += _lines(name, self.entries[f"{section}.{name}"], "  ")
            else:
                lines += _lines(section, self.entries[section], "")
        return "\n".join(lines) + "\n"


def _rank(key: str) -> tuple[int, int]:
    section, _, _ = key.partition(".")
    return _ORDER.index(section), _ORDER.index(key) if key in _ORDER else len(_ORDER)


def _lines(name: str, entry: Entry, indent: str) -> Iterator[str]:
    value = yaml.safe_dump(entry.value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    line = f"{indent}{name}: {value.strip().removesuffix('...').strip()}"
    if not entry.comment:
        yield line
    elif len(line) + len(entry.comment) + 4 <= _WIDTH:
        yield f"{line}  # {entry.comment}"
    else:
        yield from textwrap.wrap(
            entry.comment, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", break_long_words=False
        )
        yield line
