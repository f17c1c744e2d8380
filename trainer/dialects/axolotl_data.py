"""The rows of an Axolotl recipe: `datasets`, and what is said of their form elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from loradock.trainer.dialects import parts
from loradock.trainer.dialects.axolotl_keys import DATASET
from loradock.trainer.dialects.draft import Draft
from loradock.trainer.dialects.places import Places
from loradock.trainer.dialects.rules import TURNS
from loradock.trainer.dialects.source import Location, Source

_ALPACA: Final[Mapping[str, Mapping[str, str]]] = {
    "alpaca": {},
    "alpaca:instruct": {},
    "alpaca_instruct": {},
    "gpteacher": {"output": "response"},
}
"""The types that write Alpaca's wording, and their columns."""
_ROLES: Final = {
    "user": {"user", "human", "prompter"},
    "assistant": {"assistant", "gpt", "chatgpt", "model", "bot"},
    "system": {"system"},
    "tool": {"tool"},
}
"""The names of roles that are understood without being told."""
_WORDING: Final = (
    "prompts have Alpaca's headings, but neither the sentence that Axolotl begins with nor its empty lines"
)
_OWN_TEMPLATE: Final = "rows are written by the base's own chat template, which must be that one"


@dataclass(frozen=True, slots=True)
class _Form:
    """What the rows of one data set look like."""

    format: str
    columns: Mapping[str, str]
    split: str
    subset: str | None


def rows_of(source: Source, draft: Draft, places: Places) -> list[parts.Rows]:
    """Fill `draft` with where the rows are and what they look like; the rows, for what is counted in them."""
    sets = source.get("datasets")
    if not isinstance(sets, list) or not sets or not all(isinstance(entry, Mapping) for entry in sets):
        if not (source.peek("pretraining_dataset") or source.peek("rl")):
            source.refuse(("datasets",), "should be a list of data sets, each with a path and a type")
        return []
    rows: list[parts.Rows] = []
    first: _Form | None = None
    for index in range(len(sets)):
        at = ("datasets", index)
        source.apply(DATASET, draft, *at)
        form, found = _form(source, at), _paths(source, places, at)
        rows += found
        if form and first and form != first:
            source.refuse(
                at, "its rows differ in type, columns or split from the first one's: a recipe reads rows of one form"
            )
        first = first or form
        source.finish(DATASET, *at)
    if rows:
        paths = [part.path for part in rows]
        draft.set("data.path", paths[0] if len(paths) == 1 else paths, ("datasets",))
    if first:
        _write(source, draft, first)
    return rows


def _write(source: Source, draft: Draft, form: _Form) -> None:
    where = ("datasets", 0)
    draft.set("data.format", form.format, (*where, "type"))
    if form.columns:
        draft.set("data.columns", dict(form.columns), where)
    if form.split != "train":
        draft.set("data.split", form.split, (*where, "split"))
    if form.subset:
        draft.set("data.subset", form.subset, (*where, "name"))
    template, system = source.get("chat_template"), source.get("default_system_message")
    if form.format != "chat":
        for key in ("chat_template", "default_system_message"):
            if source.peek(key):
                source.note((key,), f"it says nothing about {form.format} rows")
        return
    _template(source, ("chat_template",), template)
    if system:
        source.refuse(("default_system_message",), "rows are written by the base's own chat template, as it is")


def _template(source: Source, location: Location, template: Any) -> None:
    if template and not str(template).startswith("tokenizer_default"):
        source.note(location, f"{_OWN_TEMPLATE} ({template})")


def _form(source: Source, at: Location) -> _Form | None:
    kind = source.get(*at, "type")
    split, subset = source.get(*at, "split"), source.get(*at, "name")
    columns: dict[str, str] | None
    if isinstance(kind, str) and kind in _ALPACA:
        form, columns = "alpaca", dict(_ALPACA[kind])
        source.note((*at, "type"), _WORDING)
    elif kind in ("chat_template", "sharegpt"):
        form, columns = "chat", _chat(source, at, "conversations" if kind == "sharegpt" else "messages")
        source.note((*at, "type"), TURNS)
    elif kind == "completion":
        field = source.get(*at, "field") or "text"
        form, columns = "text", {} if field == "text" else {"text": str(field)}
        source.note((*at, "type"), "rows longer than sequence_len are left out and counted here, not cut into pieces")
    else:
        said = "is missing: rows of token ids are not read" if kind is None else "writes rows in a way not known here"
        source.refuse((*at, "type"), f"{said}; {', '.join([*_ALPACA, 'chat_template', 'completion'])} are")
        return None
    return None if columns is None else _Form(form, columns, str(split or "train"), subset)


def _chat(source: Source, at: Location, messages: str) -> dict[str, str] | None:
    """The columns of chat rows, and whether the loss falls where it does here; None after a fault."""
    before = len(source.problems)
    old = messages == "conversations"
    found = {"role": "from" if old else "role", "content": "value" if old else "content"}
    mapped = source.typed(dict, *at, "message_property_mappings") or {}
    for name, usual in tuple(found.items()):
        legacy = source.get(*at, f"message_field_{name}")
        found[name] = str(mapped.get(name) or legacy or usual)
    for name in mapped:
        if name not in found:
            source.refuse((*at, "message_property_mappings", name), "a turn is a role and its text")
    for role in source.typed(dict, *at, "roles") or {}:
        if not set(map(str, source.typed(list, *at, "roles", role) or [])) <= _ROLES.get(role, set()):
            known = "; ".join(f"{ours}: {', '.join(sorted(theirs))}" for ours, theirs in _ROLES.items())
            source.refuse((*at, "roles", role), f"roles have the names that are understood without being told: {known}")
    trained = source.typed(list, *at, "roles_to_train")
    if trained is not None and not set(map(str, trained)) <= _ROLES["assistant"]:
        source.refuse((*at, "roles_to_train"), "the assistant's turns are trained on, and no others")
    for key in ("train_on_eos", "train_on_eot"):
        if source.get(*at, key) not in (None, "turn"):
            source.refuse((*at, key), "the end of each of the assistant's turns is trained on, and no other: turn")
    _template(source, (*at, "chat_template"), source.get(*at, "chat_template"))
    found["messages"] = str(source.get(*at, "field_messages") or messages)
    return (
        {name: column for name, column in found.items() if column != name} if len(source.problems) == before else None
    )


def _paths(source: Source, places: Places, at: Location) -> list[parts.Rows]:
    path, kind, revision = source.get(*at, "path"), source.get(*at, "ds_type"), source.get(*at, "revision")
    files = source.get(*at, "data_files")
    where: Location = (*at, "path")
    if not isinstance(path, str) or not path:
        source.refuse(where, "should be a file, a directory or ORG/NAME on the Hub")
        return []
    texts = [path]
    if files:
        where = (*at, "data_files")
        directory = places.find(path)
        if path not in ("json", "csv", "parquet") and directory is None:
            source.refuse(where, "files of a data set on the Hub cannot be chosen: download them, and give their paths")
            return []
        names = [str(name) for name in (files if isinstance(files, list) else [files])]
        texts = [str(Path(path) / name) if directory else name for name in names]
    rows = [found for text in texts if (found := parts.rows(source, places, text, where, revision))]
    local = [found.found for found in rows if found.found]
    if kind and any(file.is_file() and not _is_kind(file, str(kind)) for file in local):
        source.refuse((*at, "ds_type"), f"{kind} is not what the file's name ends in")
    if local and source.peek(*at, "split") not in (None, "train"):
        source.refuse((*at, "split"), "a file is read whole: write the rows that you mean to a file of their own")
    if local and revision:
        source.note((*at, "revision"), "a file has no revision")
    return rows


def _is_kind(file: Path, kind: str) -> bool:
    return file.suffix.lower().removeprefix(".").replace("jsonl", "json") == kind
