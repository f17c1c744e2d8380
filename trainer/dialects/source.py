"""Another trainer's recipe while it is read: its values, and what there is to say of its keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from loradock.trainer import recipe as recipes
from loradock.trainer.dialects.draft import Draft
from loradock.trainer.dialects.rules import Kind, Rule, unknown
from loradock.trainer.yaml_lines import Document, Problem

Location = tuple[str | int, ...]
"""A path of keys and indices in the document."""
Kept = TypeVar("Kept")
_KINDS: Final[Mapping[type, str]] = {
    dict: "a section of settings (key: value)",
    list: "a list",
    int: "a whole number",
    bool: "true or false",
}


@dataclass(slots=True)
class Source:
    """The document, which of its keys were asked for, and the faults and notes that came of it."""

    document: Document
    dialect: str
    problems: list[Problem] = field(default_factory=list)
    _notes: dict[str, list[Problem]] = field(default_factory=dict)
    _asked: set[Location] = field(default_factory=set)

    def get(self, *location: str | int) -> Any:
        """The value at `location`, or None; the key counts as honoured from here on."""
        self._asked.add(location)
        return self.peek(*location)

    def typed(self, kind: type[Kept], *location: str | int) -> Kept | None:
        """As `get`, for a value of one kind; another kind is a fault, and None."""
        value = self.get(*location)
        if value is None or isinstance(value, kind):
            return value
        self.refuse(location, f"should be {_KINDS[kind]}")
        return None

    def peek(self, *location: str | int) -> Any:
        """The value at `location`, or None."""
        value = self.document.value
        for part in location:
            if isinstance(value, Mapping) and isinstance(part, str):
                value = value.get(part)
            elif isinstance(value, list) and isinstance(part, int) and part < len(value):
                value = value[part]
            else:
                return None
        return value

    def refuse(self, location: Location, why: str) -> None:
        """The key at `location` cannot be honoured."""
        self._asked.add(location)
        self.problems.append(self.document.problem(location, why))

    def note(self, location: Location, why: str) -> None:
        """The key at `location` changes nothing, or means something else here."""
        self._asked.add(location)
        inner = self.peek(*location)
        told = f" ({', '.join(map(str, inner))})" if isinstance(inner, Mapping) else ""
        found = self.document.problem(location, "")
        self._notes.setdefault(why, []).append(Problem(found.line, found.text.removesuffix(": ") + told))

    def warnings(self, name: str) -> tuple[str, ...]:
        """What was noted, as `name:line: keys: why`: one line for each reason, in the order of the file."""
        notes = [(sorted(keys, key=lambda found: found.line), why) for why, keys in self._notes.items()]
        return tuple(
            f"{name}:{keys[0].line}: {', '.join(found.text for found in keys)}: {why}"
            for keys, why in sorted(notes, key=lambda note: note[0][0].line)
        )

    def apply(self, table: Mapping[str, Rule], draft: Draft, *at: str | int) -> None:
        """Do with each key of the section at `at` what its rule says; what is worked out is left to the caller."""
        for key, value in self._section(at):
            location = (*at, key)
            if (rule := table.get(key)) is None:
                self.refuse(location, unknown(key, table, self.dialect))
            elif rule.kind is Kind.TO and value is not None:
                ours = rule.words.get(value, value) if isinstance(value, str) else value
                draft.set(rule.said, recipes.as_number(ours), location)
            elif rule.kind is Kind.IDLE and not rule.is_off(value):
                self.note(location, rule.said)
            elif rule.kind is Kind.REFUSED and not rule.is_off(value):
                self.refuse(location, rule.said)

    def finish(self, table: Mapping[str, Rule], *at: str | int) -> None:
        """Name what no function asked for: it says nothing beside the other keys."""
        for key, value in self._section(at):
            rule, location = table.get(key), (*at, key)
            if rule and rule.kind is Kind.WORKED and location not in self._asked and not rule.is_off(value):
                self.note(location, "it says nothing beside the other keys of this file")

    def _section(self, at: Location) -> list[tuple[str, Any]]:
        section = self.peek(*at) if at else self.document.value
        return [(str(key), value) for key, value in section.items()] if isinstance(section, Mapping) else []
