"""The rows of a LLaMA-Factory recipe: the names in `dataset`, looked up in dataset_info.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from loradock.trainer.dialects import parts
from loradock.trainer.dialects.draft import Draft
from loradock.trainer.dialects.llamafactory_keys import ALPACA_COLUMNS, CHAT_COLUMNS, CHAT_TAGS, INFO, NAME
from loradock.trainer.dialects.places import Places
from loradock.trainer.dialects.rules import CUT, TURNS, Kind, unknown
from loradock.trainer.dialects.source import Source

_INFO: Final = "dataset_info.json"
_PLAIN: Final = ("alpaca", "default", "empty", "fewshot", "vanilla")
"""Templates that are no model's own chat template."""
_TAGS: Final = {
    "user_tag": ("human", "user", "prompter"),
    "assistant_tag": ("gpt", "assistant", "chatgpt", "model", "bot"),
    "system_tag": ("system",),
    "observation_tag": ("observation", "tool"),
    "function_tag": ("function_call", "function"),
}
"""The names of roles that are understood without being told."""


def listed(value: Any) -> list[str]:
    """Names between commas; a list of them is one already."""
    items = value if isinstance(value, list) else str(value).split(",") if value else []
    return [str(item).strip() for item in items]


@dataclass(frozen=True, slots=True)
class _Form:
    """What the rows of one data set look like."""

    format: str
    columns: Mapping[str, str]
    split: str
    subset: str | None


def rows_of(source: Source, draft: Draft, places: Places) -> list[parts.Rows]:
    """Fill `draft` with where the rows are and what they look like; the rows, for what is counted in them."""
    names = [name for name in listed(source.get("dataset")) if name]
    directory = source.get("dataset_dir") or "data"
    if not names:
        source.refuse(("dataset",), f"should name data sets of {_INFO}")
        return []
    _template(source)
    info = _info(source, places, str(directory))
    rows: list[parts.Rows] = []
    first: _Form | None = None
    for name in names:
        if info is None:
            break
        if not isinstance(entry := info.get(name), Mapping):
            source.refuse(("dataset",), f"{name} is not in {_INFO}; {', '.join(sorted(info)[:20])} are")
            continue
        form = _form(source, name, entry)
        if form and first and form != first:
            source.refuse(
                ("dataset",),
                f"the rows of {name} differ in form from those of {names[0]}: a recipe reads rows of one form",
            )
        first = first or form
        text = entry.get("hf_hub_url") or str(Path(str(directory)) / str(entry.get("file_name", name)))
        if found := parts.rows(source, places, str(text), ("dataset",)):
            rows.append(found)
    if rows:
        paths = [part.path for part in rows]
        draft.set("data.path", paths[0] if len(paths) == 1 else paths, ("dataset",))
    if first:
        _write(source, draft, first)
    _samples(source, draft, rows)
    parts.heldout(source, draft, "val_size", parts.total(rows))
    return rows


def _info(source: Source, places: Places, directory: str) -> Mapping[str, Any] | None:
    """dataset_info.json; None after a fault."""
    if directory == "ONLINE":
        return {name: {"hf_hub_url": name} for name in listed(source.peek("dataset"))}
    where = ("dataset_dir",) if source.peek("dataset_dir") else ("dataset",)
    found = places.find(str(Path(directory) / _INFO))
    if found is None:
        source.refuse(where, f"there is no {directory}/{_INFO}, neither in the working directory nor beside this file")
        return None
    try:
        value = json.loads(found.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        source.refuse(where, f"{found} is not JSON: {error}")
        return None
    if not isinstance(value, Mapping):
        source.refuse(where, f"{found} holds no data sets by name")
        return None
    return value


def _form(source: Source, name: str, entry: Mapping[str, Any]) -> _Form | None:
    before = len(source.problems)
    for key, value in entry.items():
        rule = INFO.get(key)
        if rule is None:
            source.refuse(("dataset",), f"{name} in {_INFO}: {key} {unknown(key, INFO)}")
        elif rule.kind is Kind.REFUSED and not rule.is_off(value):
            source.refuse(("dataset",), f"{name} in {_INFO}: {key}: {rule.said}")
    formatting = entry.get("formatting", "alpaca")
    chat = formatting in ("sharegpt", "openai")
    if not chat and formatting != "alpaca":
        source.refuse(
            ("dataset",), f"{name} in {_INFO}: formatting: {formatting} is none of alpaca, sharegpt and openai"
        )
    columns = dict.fromkeys(("messages",), "conversations") if chat else {}
    known = CHAT_COLUMNS if chat else ALPACA_COLUMNS
    for theirs, column in (entry.get("columns") or {}).items():
        if theirs in known and column:
            columns[known[theirs]] = str(column)
        elif column:
            source.refuse(("dataset",), f"{name} in {_INFO}: columns.{theirs}: only {', '.join(known)} are read")
    if chat:
        columns |= _tags(source, name, entry.get("tags") or {})
    if len(source.problems) > before:
        return None
    named = {ours: column for ours, column in columns.items() if ours != column}
    return _Form("chat" if chat else "alpaca", named, entry.get("split") or "train", entry.get("subset"))


def _tags(source: Source, name: str, tags: Mapping[str, Any]) -> dict[str, str]:
    found = {"role": "from", "content": "value"}
    for tag, value in tags.items():
        if tag in CHAT_TAGS:
            found[CHAT_TAGS[tag]] = str(value)
        elif value not in _TAGS.get(tag, ()):
            source.refuse(("dataset",), f"{name} in {_INFO}: tags.{tag}: {value} is no role that is understood here")
    return found


def _write(source: Source, draft: Draft, form: _Form) -> None:
    draft.set("data.format", form.format, ("dataset",), f"as {_INFO} says")
    if form.columns:
        draft.set("data.columns", dict(form.columns), ("dataset",), f"as {_INFO} says")
    if form.split != "train":
        draft.set("data.split", form.split, ("dataset",))
    if form.subset:
        draft.set("data.subset", form.subset, ("dataset",))
    if form.format == "chat":
        source.note(("dataset",), TURNS)
    else:
        draft.set("data.template", "chat", ("template",), f"{NAME} writes instructions as chat, too")
    source.note(("cutoff_len",) if source.peek("cutoff_len") else ("dataset",), CUT)


def _template(source: Source) -> None:
    template = source.get("template")
    if template in _PLAIN:
        source.refuse(("template",), f"{template} is no model's own: rows are written by the base's own chat template")
    elif template:
        source.note(
            ("template",), f"rows are written by the base's own chat template, which must be that one ({template})"
        )


def _samples(source: Source, draft: Draft, rows: Sequence[parts.Rows]) -> None:
    """The first rows of each data set: nothing where a file has no more, a slice of a split on the Hub."""
    if (most := source.typed(int, "max_samples")) is None or not rows:
        return
    if all(part.found is None for part in rows):
        draft.set("data.split", f"{draft.get('data.split') or 'train'}[:{most}]", ("max_samples",), "the first rows")
    elif any((part.count or most + 1) > most for part in rows):
        source.refuse(
            ("max_samples",), f"a file is read whole, and one has more than {most} rows: write its first to another"
        )
    else:
        source.note(("max_samples",), "no file has more rows than that")
