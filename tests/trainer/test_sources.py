"""The same rows come from every kind of file, from directories and from the Hub, each with its place."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pyarrow as pa
import pytest
from pyarrow import parquet

from loradock.registry.errors import BadInput, NotFound, Unreachable
from loradock.trainer import data, sources
from loradock.trainer.recipe import Data
from loradock.trainer.sources import Record

ROWS = [{"instruction": f"Say {word}\n", "input": None, "output": f'"{word}",'} for word in ("a", "é", "\u2028")]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def as_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps({"version": 1, "data": rows}, indent=1), encoding="utf-8")


def as_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


WRITERS = {"jsonl": jsonl, "json": as_json, "csv": as_csv, "parquet": as_parquet}


def records(directory: Path, path: str | tuple[str, ...], **settings: Any) -> list[Record]:
    return [record for file in sources.read(Data(path=path, **settings), directory) for record in file.records]


def fault(directory: Path, path: str, **settings: Any) -> str:
    with pytest.raises(BadInput) as raised:
        data.load(Data(path=path, **settings), directory)
    assert len(raised.value.problems) == 1
    return raised.value.problems[0]


@pytest.mark.parametrize("ending", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    jsonl(tmp_path / "reference.jsonl", ROWS)
    WRITERS[ending](tmp_path / f"rows.{ending}", ROWS)
    reference = data.load(Data(path="reference.jsonl"), tmp_path)
    assert data.load(Data(path=f"rows.{ending}"), tmp_path).digest == reference.digest
    places = [record.place for record in records(tmp_path, f"rows.{ending}")]
    assert places == [f"rows.jsonl:{n}" if ending == "jsonl" else f"rows.{ending}: row {n}" for n in (1, 2, 3)]


def test_conversations_from_parquet_have_no_null_keys(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "name": None}]
    as_parquet(tmp_path / "rows.parquet", [{"messages": turns, "tools": None}])
    jsonl(
        tmp_path / "rows.jsonl",
        [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
    )
    digests = {data.load(Data(path=f"rows.{ending}"), tmp_path).digest for ending in ("parquet", "jsonl")}
    assert len(digests) == 1


def test_columns_that_are_null_tell_no_layout(tmp_path: Path) -> None:
    as_parquet(tmp_path / "rows.parquet", [{"messages": None, "text": word} for word in ("a", "b")])
    assert data.load(Data(path="rows.parquet"), tmp_path).counts == {"text": 2}


def test_a_list_of_objects_is_json_too(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    assert [record.value for record in records(tmp_path, "rows.json")] == ROWS


def test_a_directory_is_read_whole_in_order(tmp_path: Path) -> None:
    (tmp_path / "rows" / "deep").mkdir(parents=True)
    (tmp_path / "rows" / ".cache").mkdir()
    jsonl(tmp_path / "rows" / "b.JSONL", ROWS[:1])
    as_csv(tmp_path / "rows" / "a.csv", ROWS[1:2])
    as_parquet(tmp_path / "rows" / "deep" / "c.parquet", ROWS[2:])
    jsonl(tmp_path / "rows" / ".cache" / "d.jsonl", ROWS)
    (tmp_path / "rows" / "README.md").write_text("none of the rows")
    assert [record.place for record in records(tmp_path, "rows/")] == [
        "rows/a.csv: row 1",
        "rows/b.JSONL:1",
        "rows/deep/c.parquet: row 1",
    ]
    assert data.load(Data(path="rows"), tmp_path).name == "rows"


def test_several_paths_are_read_in_turn_and_none_tells_its_directory(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    jsonl(tmp_path / "rows" / "a.jsonl", ROWS[:2])
    as_json(tmp_path / "b.json", ROWS[2:])
    rows = data.load(Data(path=(str(tmp_path / "b.json"), "rows", "rows/a.jsonl")), tmp_path)
    assert rows.name == "b.json, rows, rows/a.jsonl"
    assert (len(rows.rows), rows.duplicates.count) == (5, 2)
    assert rows.duplicates.places[0] == "rows/a.jsonl:1 repeats rows/a.jsonl:1"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("rows.json", b"{", "rows.json: it is not JSON: "),
        ("rows.json", b'[\n{"a" 1}]', "rows.json: it is not JSON: Expecting ':' delimiter at line 2, column 6"),
        (
            "rows.json",
            b'{"text": "a"}\n{"text": "b"}\n',
            "rows.json: it holds more than one JSON value; JSON Lines end",
        ),
        ("rows.json", b"3", "rows.json: it is neither a list of rows nor an object with one"),
        ("rows.json", b'{"a": 1}', "rows.json: it is neither a list of rows nor an object with one"),
        ("rows.json", b'{"train": [], "test": []}', "rows.json: it has more than one list: train, test"),
        ("rows.json", b"[]", "rows.json: it has no rows"),
        ("rows.json", b"\xff", "rows.json: it is not UTF-8 text"),
        ("rows.json", b"[" * 100_000, "rows.json: it is not JSON that can be read"),
        ("rows.json", b'[{"text": "a"}, 3]', "rows.json: row 2: it is not a JSON object"),
        ("rows.jsonl", b'{"text": "a"}\n{"text"', "rows.jsonl:2: it is not JSON: "),
        ("rows.csv", b"", "rows.csv: it has no rows"),
        ("rows.csv", b"text\n", "rows.csv: it has no rows"),
        ("rows.csv", b"text,text\na,b\n", "rows.csv: its header names a column twice: text, text"),
        ("rows.csv", b"prompt,completion\na,b\nc\n", "rows.csv: row 2: it has 1 cells, and the header 2"),
        ("rows.csv", b"text\na,b\n", "rows.csv: row 1: it has 2 cells, and the header 1"),
        ("rows.csv", b'text\n"a', "rows.csv:2: it is not CSV: unexpected end of data"),
        ("rows.csv", b"text\n\xff\n", "rows.csv: it is not UTF-8 text"),
        ("rows.csv", b"prompt;completion\na;b\n", "rows.csv: row 1: its columns are prompt;completion, which is no"),
        ("rows.parquet", b"PAR1", "rows.parquet: it is not Parquet: "),
        ("rows.parquet", b"", "rows.parquet: it is not Parquet: "),
        ("rows.txt", b"hello", "rows.txt: its ending is none of .jsonl, .json, .csv, .parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert fault(tmp_path, name).startswith(problem)


def test_a_long_cell_is_read(tmp_path: Path) -> None:
    as_csv(tmp_path / "rows.csv", [{"text": "long " * 100_000}])
    before = csv.field_size_limit()
    assert len(records(tmp_path, "rows.csv")[0].value["text"]) == 500_000
    assert csv.field_size_limit() == before


def test_an_empty_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    assert fault(tmp_path, "rows") == "rows: it holds no .jsonl, .json, .csv, .parquet file"


def test_faults_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.csv").write_text("text\n \n")
    with pytest.raises(BadInput) as raised:
        data.load(Data(path=("a.json", "b.csv")), tmp_path)
    assert [problem.split(":")[0] for problem in raised.value.problems] == ["a.json", "b.csv"]


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no file or directory"):
        records(tmp_path, "rows/none.jsonl")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as huggingface_hub lays it out, where a test can put data sets."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    return tmp_path / "hub"


def downloaded(hub: Path, repository: str, files: dict[str, str]) -> None:
    directory = hub / f"datasets--{repository.replace('/', '--')}"
    (directory / "refs").mkdir(parents=True)
    (directory / "refs" / "main").write_text(COMMIT)
    for name, content in files.items():
        path = directory / "snapshots" / COMMIT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


LINES = '{"text": "a"}\n{"text": "b"}\n'
CONFIGURED = """\
---
configs:
- config_name: main
  data_files: [{split: train, path: main.jsonl}]
- config_name: socratic
  data_files: [{split: train, path: socratic.jsonl}]
---
"""


def test_a_data_set_on_the_hub(hub: Path) -> None:
    downloaded(hub, "org/rows", {"train.jsonl": LINES, "test.jsonl": LINES.splitlines()[0], "README.md": "# Rows"})
    rows = data.load(Data(path="org/rows"), hub)
    assert rows.name == f"org/rows@{COMMIT}"
    assert [row.examples()[0].completion for row in rows.rows] == ["a", "b"]
    assert records(hub, f"org/rows@{COMMIT}", split="test") == [Record("org/rows: row 1", {"text": "a"})]
    assert len(records(hub, "org/rows", split="train[:1]")) == 1


def test_the_configuration_of_a_data_set_counts(hub: Path) -> None:
    downloaded(hub, "org/rows", {"main.jsonl": LINES, "socratic.jsonl": '{"text": "c"}', "README.md": CONFIGURED})
    assert [record.value for record in records(hub, "org/rows", subset="socratic")] == [{"text": "c"}]
    choice = "set data.subset to one of main, socratic"
    assert fault(hub, "org/rows") == f"org/rows: it has several configurations: {choice}"
    assert fault(hub, "org/rows", subset="other") == f"org/rows: it has no configuration other: {choice}"


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"train.jsonl": LINES}, 'Unknown split "validation". Should be one of'),
        ({"README.md": "# None"}, "doesn't contain any data files"),
        ({"validation.jsonl": "{"}, "JSON parse error"),
    ],
)
def test_a_data_set_that_cannot_be_used(hub: Path, files: dict[str, str], problem: str) -> None:
    downloaded(hub, "org/rows", files)
    said = fault(hub, "org/rows", split="validation")
    assert said.startswith("org/rows: it cannot be read: ")
    assert problem in said


def test_a_data_set_that_is_not_here_and_no_network(hub: Path) -> None:
    with pytest.raises(Unreachable, match="'org/rows' is not in its local cache"):
        records(hub, "org/rows")


def test_a_directory_goes_before_the_hub(hub: Path) -> None:
    downloaded(hub, "org/rows", {"train.jsonl": LINES})
    (hub / "org" / "rows").mkdir(parents=True)
    jsonl(hub / "org" / "rows" / "here.jsonl", [{"text": "here"}])
    assert [record.place for record in records(hub, "org/rows")] == ["org/rows/here.jsonl:1"]
