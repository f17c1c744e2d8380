"""What a row looks like in a file: recognised by its columns, checked, and parsed into a Row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from loradock.trainer.recipe import Data
from loradock.trainer.rows import Chat, ChatExample, Instruction, Message, Pair, Row, Text, TextExample

_ROLES: Final = ("system", "user", "assistant")
_SYNONYMS: Final[Mapping[str, str]] = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
"""What ShareGPT's files and their kin call the two who speak."""


_TOLD: Final[Mapping[str, str]] = {
    "system": "a system message of its own, which belongs among its messages",
    "history": "earlier turns, which belong into a list of messages",
    "chosen": "a preferred answer, and only one answer to a prompt can be trained on",
    "rejected": "a rejected answer, and only one answer to a prompt can be trained on",
    "chat_template_kwargs": "settings of its own for the chat template, and all rows have the same",
    "documents": "documents for the chat template, which no row can have",
}
"""Columns by which TRL, LLaMA-Factory and others change what an answer answers."""
_MEDIA: Final = frozenset({"image", "images", "video", "videos", "audio", "audios"})
"""Columns with what is seen or heard, where they are lists or objects; text is an address that may say nothing."""


@dataclass(frozen=True, slots=True)
class Format:
    """One layout of rows."""

    columns: tuple[str, ...]
    """A row that has them all is of this layout."""
    optional: tuple[str, ...]
    faults: Callable[[Mapping[str, Any]], Iterator[str]]
    """What is wrong with a row under our names; nothing when `make` can take it."""
    make: Callable[[Mapping[str, Any]], Row]


def renamed(value: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A file's row under our names: those that `data.columns` gives, and ShareGPT's.

    What is null is not there: Parquet gives every row every column.
    """
    row = {name: item for name, item in value.items() if name not in columns.values()}
    row |= {ours: value[theirs] for ours, theirs in columns.items() if theirs in value}
    row = {name: item for name, item in row.items() if item is not None}
    if "messages" not in row and "conversations" in row:
        row["messages"] = row.pop("conversations")
    if "messages" in row:
        row["messages"] = _listed(row["messages"])
    for name in ("messages", "prompt", "completion"):
        if isinstance(turns := row.get(name), list):
            row[name] = [_turn(turn, columns) for turn in turns]
    return row


def recognise(row: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """The format that a renamed row's columns tell, or nothing.

    A row that fits several is of the one that `data.columns` speaks of, then of the first in `FORMATS`.
    """
    found = [name for name, format_ in FORMATS.items() if all(column in row for column in format_.columns)]
    meant = [name for name in found if columns.keys() & {*FORMATS[name].columns, *FORMATS[name].optional}]
    return next(iter(meant or found), "")


def faults(row: Mapping[str, Any], layout: str) -> Iterator[str]:
    """What is wrong with a renamed row; nothing when `parse` can take it."""
    yield from FORMATS[layout].faults(row)
    for name in unread(row, layout):
        if name in _TOLD and layout != "text" and row[name]:
            yield f"it has {name}: {_TOLD[name]}"
        elif name in _MEDIA and isinstance(row[name], list | dict) and row[name]:
            yield f"it has {name}, and only text can be trained on"
        elif name == "label" and row[name] is False:
            yield "it is labelled false, as an answer that is not to be learned"


def unread(row: Mapping[str, Any], layout: str) -> Iterator[str]:
    """The columns of a renamed row that its layout does not have."""
    return (name for name in row if name not in (*FORMATS[layout].columns, *FORMATS[layout].optional))


def parse(row: Mapping[str, Any], layout: str, data: Data) -> Row:
    """A renamed row that has no faults."""
    made = FORMATS[layout].make(row)
    return replace(made, template=data.template) if isinstance(made, Instruction) else made


def _listed(value: Any) -> Any:
    """A list of messages that a CSV file holds as JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _turn(turn: Any, columns: Mapping[str, str]) -> Any:
    """A message under our names."""
    if not isinstance(turn, dict):
        return turn
    role, content = columns.get("role", "role"), columns.get("content", "content")
    if role not in turn and content not in turn and {"from", "value"} <= turn.keys():
        role, content = "from", "value"
    named = {key: item for key, item in turn.items() if key not in (role, content) and item is not None}
    if role in turn:
        speaker = turn[role]
        named["role"] = _SYNONYMS.get(speaker, speaker) if role != "role" and isinstance(speaker, str) else speaker
    if content in turn:
        named["content"] = turn[content]
    return named


def _chat_faults(row: Mapping[str, Any]) -> Iterator[str]:
    if "tools" in row:
        yield "it has tools, and only plain conversations can be trained on"
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        yield "it has no list of messages"
        return
    yield from _turns_faults(messages)


def _turns_faults(messages: list[Any]) -> Iterator[str]:
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
        elif fault := _text_fault(key, message[key]):
            yield fault
        elif key == "role" and message[key] not in _ROLES:
            yield f"has the role {message[key]!r}; {', '.join(_ROLES)} are known"
    for key in sorted(message.keys() - {"role", "content"}):
        yield f"has {key!r}, which cannot be trained on"


def _text_fault(name: str, value: Any) -> str:
    """What keeps a value from being trained on as text, or nothing."""
    article = "an" if name[0] in "aeiou" else "a"
    if not isinstance(value, str):
        return f"has {article} {name} that is not text"
    if not value.strip():
        return f"has an empty {name}"
    if any("\ud800" <= character <= "\udfff" for character in value):
        return f"has {article} {name} with half of a surrogate pair, which is not text"
    return ""


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


def _column_faults(row: Mapping[str, Any], needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> Iterator[str]:
    for name in needed:
        if name not in row:
            yield f"it has no {name}"
        elif fault := _text_fault(name, row[name]):
            yield f"it {fault}"
    for name in optional:
        value = row.get(name, "")
        if not (isinstance(value, str) and not value.strip()) and (fault := _text_fault(name, value)):
            yield f"it {fault}"


def _instruction_faults(row: Mapping[str, Any]) -> Iterator[str]:
    return _column_faults(row, ("instruction", "output"), ("input", "system"))


def _text_faults(row: Mapping[str, Any]) -> Iterator[str]:
    return _column_faults(row, ("text",))


def _pair_faults(row: Mapping[str, Any]) -> Iterator[str]:
    prompt, completion = row.get("prompt"), row.get("completion")
    if not isinstance(prompt, list) and not isinstance(completion, list):
        yield from _column_faults(row, ("prompt", "completion"))
    elif not isinstance(prompt, list) or not isinstance(completion, list):
        yield "its prompt and completion are neither both text nor both lists of messages"
    elif not prompt or len(completion) != 1:
        yield "it needs a prompt of messages and a completion of one, the assistant's"
    else:
        yield from _chat_faults({**row, "messages": [*prompt, *completion]})


def _chat(row: Mapping[str, Any]) -> Row:
    return Chat(_messages(row["messages"]))


def _messages(turns: list[dict[str, str]]) -> tuple[Message, ...]:
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


def _instruction(row: Mapping[str, Any]) -> Row:
    given, system = (text if text.strip() else "" for text in (row.get("input", ""), row.get("system", "")))
    return Instruction(row["instruction"], row["output"], given, system)


def _pair(row: Mapping[str, Any]) -> Row:
    if isinstance(row["prompt"], str):
        return Pair(TextExample(row["prompt"], row["completion"]))
    return Pair(ChatExample(_messages(row["prompt"]), _messages(row["completion"])[0]))


def _text(row: Mapping[str, Any]) -> Row:
    return Text(row["text"])


FORMATS: Final[Mapping[str, Format]] = {
    "chat": Format(("messages",), ("role", "content"), _chat_faults, _chat),
    "alpaca": Format(("instruction", "output"), ("input", "system"), _instruction_faults, _instruction),
    "prompt_completion": Format(("prompt", "completion"), (), _pair_faults, _pair),
    "text": Format(("text",), (), _text_faults, _text),
}
"""Every layout by its name in `data.format`."""
