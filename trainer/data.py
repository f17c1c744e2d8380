"""Chat rows: read and checked line by line, told apart by content, split so that a row never changes sides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from registry.errors import BadInput, NotFound
from registry.records import canonical_json

_ROLES: Final = ("system", "user", "assistant")
_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Message:
    """One turn."""

    role: str
    content: str

    def plain(self) -> dict[str, str]:
        """The form that chat templates and TRL take."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Example:
    """What one assistant turn is learned from: all before it, and the turn, which alone carries loss."""

    prompt: tuple[Message, ...]
    completion: Message

    def plain(self) -> dict[str, list[dict[str, str]]]:
        """A row of TRL's conversational prompt/completion form."""
        return {"prompt": [message.plain() for message in self.prompt], "completion": [self.completion.plain()]}


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation."""

    messages: tuple[Message, ...]

    def canonical(self) -> str:
        """The text that stands for this row wherever its bytes matter."""
        return canonical_json([message.plain() for message in self.messages])

    def examples(self) -> tuple[Example, ...]:
        """One example for each assistant turn."""
        return tuple(
            Example(self.messages[:index], message)
            for index, message in enumerate(self.messages)
            if message.role == "assistant"
        )


@dataclass(frozen=True, slots=True)
class Rows:
    """A data file, whole."""

    name: str
    """The file's name, without its directory."""
    rows: tuple[Row, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over every row in order, 64 hex digits; spaces, key order and other keys do not count."""
        total = hashlib.sha256()
        for row in self.rows:
            total.update(row.canonical().encode() + b"\n")
        return total.hexdigest()

    def split(self, heldout: float) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
        """The rows to train on, and those that only measure; raises BadInput when a side stays empty.

        The side follows from a row's content alone: data that grows moves no row, and equal rows stay together.
        """
        sides: tuple[list[Row], list[Row]] = ([], [])
        for row in self.rows:
            sides[_position(row) < heldout].append(row)
        if not all(sides):
            empty = "train on" if not sides[0] else "hold out"
            raise BadInput(
                f"{self.name} leaves no row to {empty}: {len(self.rows)} rows at data.heldout {heldout:g}",
                hint="give more rows, or another data.heldout; a row's side follows from its content",
            )
        return tuple(sides[0]), tuple(sides[1])


def _position(row: Row) -> float:
    """Where a row's content falls in [0, 1)."""
    return int.from_bytes(hashlib.sha256(row.canonical().encode()).digest()[:6], "big") / 2**48


def load(path: Path) -> Rows:
    """Read a chat JSONL file; raises NotFound, or BadInput with every fault as `file:line: what is wrong`.

    One JSON object a line, `{"messages": [{"role": ..., "content": ...}, ...]}`, ending in the assistant's turn;
    a row's other keys are left alone.
    """
    if not path.is_file():
        raise NotFound(f"there is no data file {path}")
    rows: list[Row] = []
    problems: list[str] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not (line := line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip():
                continue
            value, faults = _parse(line)
            problems += (f"{path.name}:{number}: {fault}" for fault in faults)
            if not faults:
                rows.append(_row(value))
    if not rows and not problems:
        problems = [f"{path.name}: it has no rows"]
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise BadInput(f"{path} cannot be used", problems=problems[:_SHOWN] + more)
    return Rows(path.name, tuple(rows))


def _parse(line: bytes) -> tuple[Any, list[str]]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return None, ["it is not UTF-8 text"]
    except json.JSONDecodeError as error:
        return None, [f"it is not JSON: {error.msg} at column {error.colno}"]
    except (ValueError, RecursionError):
        return None, ["it is not JSON that can be read"]
    return value, list(_faults(value))


def _row(value: Any) -> Row:
    return Row(tuple(Message(message["role"], message["content"]) for message in value["messages"]))


def _faults(value: Any) -> Iterator[str]:
    if not isinstance(value, dict):
        yield "it is not a JSON object"
        return
    if "tools" in value:
        yield "it has tools, and only plain conversations can be trained on"
    messages = value.get("messages")
    if not isinstance(messages, list) or not messages:
        yield "it has no list of messages"
        return
    broken = False
    for number, message in enumerate(messages, 1):
        for fault in _message_faults(message):
            broken = True
            yield f"message {number} {fault}"
    if not broken:
        yield from _order_faults([message["role"] for message in messages])


def _message_faults(message: Any) -> Iterator[str]:
    if not isinstance(message, dict):
        yield "is not a JSON object"
        return
    for key in ("role", "content"):
        if key not in message:
            yield f"has no {key}"
        elif not isinstance(message[key], str):
            yield f"has a {key} that is not text"
        elif not message[key].strip():
            yield f"has an empty {key}"
        elif any("\ud800" <= character <= "\udfff" for character in message[key]):
            yield f"has a {key} with half of a surrogate pair, which is not text"
        elif key == "role" and message[key] not in _ROLES:
            yield f"has the role {message[key]!r}; {', '.join(_ROLES)} are known"
    for key in sorted(message.keys() - {"role", "content"}):
        yield f"has {key!r}, which cannot be trained on"


def _order_faults(roles: list[str]) -> Iterator[str]:
    if "system" in roles[1:]:
        yield f"message {roles.index('system', 1) + 1} is a system message, and only the first can be"
    if "assistant" not in roles:
        yield "it has no assistant turn"
        return
    if roles[-1] != "assistant":
        yield f"it ends with the {roles[-1]}'s turn, not the assistant's"
    if "user" not in roles[: roles.index("assistant")]:
        yield "the assistant speaks before any user"
