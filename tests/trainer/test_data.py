"""Chat rows are checked line by line, and a row's side of the split follows from its content alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from registry.errors import BadInput, NotFound
from trainer import data

USER = {"role": "user", "content": "Where is my parcel?"}
ANSWER = {"role": "assistant", "content": "Arr!"}
SYSTEM = {"role": "system", "content": "Be kind."}


def row(*messages: Any) -> str:
    return json.dumps({"messages": list(messages)})


def load(tmp_path: Path, *lines: str) -> data.Rows:
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    return data.load(path)


def many(count: int) -> list[str]:
    return [row({"role": "user", "content": f"question {number}"}, ANSWER) for number in range(count)]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "it is not JSON: "),
        ("[" * 100_000, "it is not JSON"),
        ("[]", "it is not a JSON object"),
        ("{}", "it has no list of messages"),
        ('{"messages": []}', "it has no list of messages"),
        ('{"messages": "hello"}', "it has no list of messages"),
        ('{"prompt": "a", "completion": "b"}', "it has no list of messages"),
        (row("hello", ANSWER), "message 1 is not a JSON object"),
        (row({"content": "a"}, ANSWER), "message 1 has no role"),
        (row(USER, {"role": "assistant"}), "message 2 has no content"),
        (row(USER, {"role": "assistant", "content": None}), "message 2 has a content that is not text"),
        (row({"role": "user", "content": [{"type": "image"}]}, ANSWER), "message 1 has a content that is not text"),
        (row(USER, {"role": "assistant", "content": " \n"}), "message 2 has an empty content"),
        (row({"role": "human", "content": "a"}, ANSWER), "message 1 has the role 'human'; system, user, assistant are"),
        (row(USER, ANSWER | {"weight": 0}), "message 2 has 'weight', which cannot be trained on"),
        (row(USER), "it has no assistant turn"),
        (row(USER, ANSWER, USER), "it ends with the user's turn, not the assistant's"),
        (row(USER, SYSTEM, ANSWER), "message 2 is a system message, and only the first can be"),
        (row(SYSTEM, ANSWER), "the assistant speaks before any user"),
        (row(ANSWER), "the assistant speaks before any user"),
        (json.dumps({"tools": [], "messages": [USER, ANSWER]}), "it has tools"),
        (row(USER, {"role": "assistant", "content": "\ud83d"}), "message 2 has a content with half of a surrogate"),
    ],
)
def test_a_fault_is_told_with_its_line(tmp_path: Path, line: str, problem: str) -> None:
    with pytest.raises(BadInput) as raised:
        load(tmp_path, row(USER, ANSWER), "", line)
    assert len(raised.value.problems) == 1
    assert raised.value.problems[0].startswith(f"rows.jsonl:3: {problem}")


def test_every_fault_is_told_at_once_and_many_are_counted(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as raised:
        load(tmp_path, *["{}"] * 33)
    assert len(raised.value.problems) == 21
    assert raised.value.problems[19].startswith("rows.jsonl:20: ")
    assert raised.value.problems[20] == "and 13 more"


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(BadInput) as raised:
        data.load(tmp_path / "rows.jsonl")
    assert raised.value.problems == ("rows.jsonl: it has no rows",)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(BadInput) as raised:
        data.load(tmp_path / "rows.jsonl")
    assert raised.value.problems == ("rows.jsonl:1: it is not UTF-8 text",)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        data.load(tmp_path / "none.jsonl")


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    line = '{"messages": [{"role": "user", "content": "a\u2028b\x85c"}, {"role": "assistant", "content": "d"}]}'
    assert load(tmp_path, "\ufeff" + line).rows[0].messages[0].content == "a\u2028b\x85c"


def test_the_digest_sees_every_word_and_no_layout(tmp_path: Path) -> None:
    digest = load(tmp_path, row(SYSTEM, USER, ANSWER), row(USER, ANSWER)).digest
    turned = {"content": USER["content"], "role": "user"}
    spaced = json.dumps({"id": 7, "messages": [turned, ANSWER]}, indent=None, separators=(" , ", " : "))
    assert load(tmp_path, row(SYSTEM, USER, ANSWER), "", spaced, "").digest == digest
    assert load(tmp_path, row(SYSTEM, USER, ANSWER), row(USER, ANSWER | {"content": "Arr."})).digest != digest
    assert load(tmp_path, row(USER, ANSWER), row(SYSTEM, USER, ANSWER)).digest != digest
    assert load(tmp_path, row(SYSTEM, USER, ANSWER), row(USER, ANSWER), row(USER, ANSWER)).digest != digest


def test_data_that_grows_moves_no_row(tmp_path: Path) -> None:
    train, heldout = load(tmp_path, *many(200)).split(0.1)
    more_train, more_heldout = load(tmp_path, *reversed(many(400))).split(0.1)
    assert set(train) <= set(more_train)
    assert set(heldout) <= set(more_heldout)
    assert 20 <= len(more_heldout) <= 60


def test_equal_rows_stay_together(tmp_path: Path) -> None:
    train, heldout = load(tmp_path, *many(50), *many(50)).split(0.2)
    assert not set(train) & set(heldout)
    assert len(train) + len(heldout) == 100


def test_both_sides_need_a_row(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="leaves no row to hold out: 1 rows"):
        load(tmp_path, row(USER, ANSWER)).split(1e-6)
    with pytest.raises(BadInput, match="leaves no row to train on"):
        load(tmp_path, row(USER, ANSWER)).split(1 - 1e-6)


def test_each_assistant_turn_is_an_example(tmp_path: Path) -> None:
    first, second = load(tmp_path, row(SYSTEM, USER, ANSWER, USER, ANSWER)).rows[0].examples()
    assert first.plain() == {"prompt": [SYSTEM, USER], "completion": [ANSWER]}
    assert second.plain() == {"prompt": [SYSTEM, USER, ANSWER, USER], "completion": [ANSWER]}
