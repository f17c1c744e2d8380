"""Where rows come from: JSONL, JSON, CSV and Parquet files, directories of them, and data sets on the Hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from loradock.registry import hub
from loradock.registry.errors import NotFound, first_line
from loradock.trainer.recipe import ENDINGS, Data, is_data_set


@dataclass(frozen=True, slots=True)
class Record:
    """One row as its file gives it, or why it gives none."""

    place: str
    """`FILE:LINE`, or `FILE: row N`, counted from 1; the file alone when all of it is at fault."""
    value: Any = None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class File:
    """One file of rows, or one split of a data set."""

    source: str
    """What named it in `data.path`, never an absolute path; a data set has its commit."""
    name: str
    records: Iterator[Record]
    """In the file's order; they can be gone through once."""


def read(data: Data, directory: Path) -> Iterator[File]:
    """The files that `data.path` names, a relative one being looked for below `directory`.

    A directory is read with all below it, in the order of the paths; hidden files and other endings are passed over.
    Faults of rows and files come as records. Raises NotFound or Unreachable.
    """
    for text in data.path:
        path = directory / Path(text).expanduser()
        name = path.name if Path(text).expanduser().is_absolute() else Path(text).as_posix()
        if path.is_dir():
            yield from _directory(path, name)
        elif path.exists():
            yield File(name, name, _records(path, name))
        elif is_data_set(text):
            yield _data_set(text, data)
        else:
            raise NotFound(
                f"there is no file or directory {path}",
                hint="data.path takes .jsonl, .json, .csv and .parquet files, directories, and ORG/NAME on the Hub",
            )


def _directory(path: Path, name: str) -> Iterator[File]:
    found = [
        file
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in _READERS and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    for file in found:
        inner = f"{name}/{file.relative_to(path).as_posix()}"
        yield File(name, inner, _records(file, inner))
    if not found:
        yield File(name, name, iter([Record(name, fault=f"it holds no {_ENDINGS} file")]))


def _records(path: Path, name: str) -> Iterator[Record]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        yield Record(name, fault=f"its ending is none of {_ENDINGS}")
        return
    try:
        yield from reader(path, name)
    except OSError as error:
        yield Record(name, fault=f"it cannot be read: {error.strerror or error}")


def _jsonl(path: Path, name: str) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if text.strip():
                value, fault = _parsed(text)
                yield Record(f"{name}:{number}", value, fault)


def _json(path: Path, name: str) -> Iterator[Record]:
    value, fault = _parsed(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), lines=True)
    if isinstance(value, dict):
        lists = {key: item for key, item in value.items() if isinstance(item, list)}
        value = next(iter(lists.values())) if len(lists) == 1 else None
        if len(lists) > 1:
            fault = f"it has more than one list: {', '.join(lists)}"
    if not fault and not isinstance(value, list):
        fault = "it is neither a list of rows nor an object with one"
    if fault:
        yield Record(name, fault=fault)
        return
    for number, row in enumerate(value, 1):
        yield Record(f"{name}: row {number}", row)


def _parsed(text: bytes, *, lines: bool = False) -> tuple[Any, str]:
    """A JSON value, or what is wrong with it; `lines` says on which line."""
    try:
        return json.loads(text.decode("utf-8")), ""
    except UnicodeDecodeError:
        return None, "it is not UTF-8 text"
    except json.JSONDecodeError as error:
        if lines and error.msg == "Extra data":
            return None, "it holds more than one JSON value; JSON Lines end in .jsonl"
        line = f"line {error.lineno}, " if lines else ""
        return None, f"it is not JSON: {error.msg} at {line}column {error.colno}"
    except (ValueError, RecursionError):
        return None, "it is not JSON that can be read"


def _csv(path: Path, name: str) -> Iterator[Record]:
    before = csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if len(set(header)) != len(header):
                yield Record(name, fault=f"its header names a column twice: {', '.join(header)}")
                return
            for number, cells in enumerate(filter(None, reader), 1):
                place = f"{name}: row {number}"
                if len(cells) != len(header):
                    yield Record(place, fault=f"it has {len(cells)} cells, and the header {len(header)}")
                else:
                    yield Record(place, dict(zip(header, cells, strict=True)))
    except UnicodeDecodeError:
        yield Record(name, fault="it is not UTF-8 text")
    except csv.Error as error:
        yield Record(f"{name}:{reader.line_num}", fault=f"it is not CSV: {error}")
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path, name: str) -> Iterator[Record]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield Record(f"{name}: row {number}", row)
    except pa.ArrowException as error:
        yield Record(name, fault=f"it is not Parquet: {first_line(error)}")


_READERS: Final[Mapping[str, Callable[[Path, str], Iterator[Record]]]] = dict(
    zip(ENDINGS, (_jsonl, _json, _csv, _parquet), strict=True)
)
_ENDINGS: Final = ", ".join(ENDINGS)


def _data_set(text: str, data: Data) -> File:
    """A split of a Hub data set, as its README's configuration lays it out; no code that comes with it is run."""
    import datasets

    repository, _, revision = text.partition("@")
    path = hub.dataset_snapshot(repository, revision or None)
    datasets.disable_progress_bars()
    fault = ""
    rows: Iterable[Any] = ()
    try:
        known = datasets.get_dataset_config_names(str(path))
        if data.subset is None and len(known) > 1:
            fault = f"it has several configurations: set data.subset to one of {', '.join(known)}"
        elif data.subset not in (None, *known):
            fault = f"it has no configuration {data.subset}: set data.subset to one of {', '.join(known)}"
        else:
            rows = datasets.load_dataset(str(path), data.subset, split=data.split)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        fault = f"it cannot be read: {first_line(error.__cause__ or error)}"
    records = (Record(f"{repository}: row {number}", row) for number, row in enumerate(rows, 1))
    broken = iter([Record(repository, fault=fault)])
    return File(f"{repository}@{path.name}", repository, broken if fault else records)
