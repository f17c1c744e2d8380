"""Rows are checked line by line, and a row's side of the split follows from its content alone."""

from __future__ import annotations

import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from loradock.registry.errors import BadInput, NotFound
from loradock.registry.store import Store
from loradock.trainer import data
from loradock.trainer.recipe import Data
from loradock.trainer.rows import Chat, Message, Row
from tests.support.chance import seeds

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "data.md"
USER = {"role": "user", "content": "Where is my parcel?"}
ANSWER = {"role": "assistant", "content": "Arr!"}
SYSTEM = {"role": "system", "content": "Be kind."}


def row(*messages: Any) -> str:
    return json.dumps({"messages": list(messages)})


def chat(question: str, answer: str = "Arr!") -> Chat:
    return Chat((Message("user", question), Message("assistant", answer)))


def load(tmp_path: Path, *lines: str, **settings: Any) -> data.Rows:
    (tmp_path / "rows.jsonl").write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    return data.load(Data(path="rows.jsonl", **settings), tmp_path)


LAYOUTS = {
    "chat": {"messages": [{"role": "user", "content": "question N"}, ANSWER]},
    "alpaca": {"instruction": "Count to", "input": "N", "output": "done"},
    "prompt_completion": {"prompt": "question N", "completion": "answer"},
    "text": {"text": "story N"},
}


def lines_of(layout: str, count: int) -> list[str]:
    text = json.dumps(LAYOUTS[layout])
    return [text.replace("N", str(number)) for number in range(count)]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "it is not JSON: "),
        ("[" * 100_000, "it is not JSON"),
        ("[]", "it is not a JSON object"),
        ("{}", "it has no list of messages"),
        ('{"messages": []}', "it has no list of messages"),
        ('{"messages": "hello"}', "it has no list of messages"),
        ('{"prompt": "a", "completion": "b"}', "its layout is prompt_completion, and rows.jsonl:1 is chat; a file has"),
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
        load(tmp_path, *['{"messages": []}'] * 33)
    assert len(raised.value.problems) == 21
    assert raised.value.problems[19].startswith("rows.jsonl:20: ")
    assert raised.value.problems[20] == "and 13 more"


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(BadInput) as raised:
        data.load(Data(path="rows.jsonl"), tmp_path)
    assert raised.value.problems == ("rows.jsonl: it has no rows",)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(BadInput) as raised:
        data.load(Data(path="rows.jsonl"), tmp_path)
    assert raised.value.problems == ("rows.jsonl:1: it is not UTF-8 text",)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        data.load(Data(path="none.jsonl"), tmp_path)


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    line = '{"messages": [{"role": "user", "content": "a\u2028b\x85c"}, {"role": "assistant", "content": "d"}]}'
    assert load(tmp_path, "\ufeff" + line).rows[0] == chat("a\u2028b\x85c", "d")


def test_the_digest_sees_every_word_and_no_layout(tmp_path: Path) -> None:
    digest = load(tmp_path, row(SYSTEM, USER, ANSWER), row(USER, ANSWER)).digest
    turned = {"content": USER["content"], "role": "user"}
    spaced = json.dumps({"id": 7, "messages": [turned, ANSWER]}, indent=None, separators=(" , ", " : "))
    assert load(tmp_path, row(SYSTEM, USER, ANSWER), "", spaced, "").digest == digest
    assert load(tmp_path, row(SYSTEM, USER, ANSWER), row(USER, ANSWER | {"content": "Arr."})).digest != digest
    assert load(tmp_path, row(USER, ANSWER), row(SYSTEM, USER, ANSWER)).digest != digest
    assert load(tmp_path, row(SYSTEM, USER, ANSWER), row(USER, ANSWER), row(USER, ANSWER)).digest != digest


def test_the_digest_is_that_of_canonical_json(tmp_path: Path) -> None:
    line = b'[{"content":"Where is my parcel?","role":"user"},{"content":"Arr!","role":"assistant"}]\n'
    assert load(tmp_path, row(USER, ANSWER)).digest == hashlib.sha256(line).hexdigest()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_digest_sees_one_character_in_the_last_of_many_rows(tmp_path: Path, layout: str) -> None:
    lines = lines_of(layout, 3000)
    digest = load(tmp_path, *lines).digest
    assert load(tmp_path, *lines).digest == digest
    assert load(tmp_path, *lines[:-1], lines[-1].replace("2999", "2998")).digest != digest


@pytest.mark.chance
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", seeds(5))
def test_data_that_grow_move_no_row(tmp_path: Path, layout: str, seed: int) -> None:
    lines, side = lines_of(layout, 400), dict[str, int]()
    chance = random.Random(seed)  # noqa: S311
    for size in (50, 100, 200, 400):
        grown = chance.sample(lines[:size], size)
        for number, rows in enumerate(load(tmp_path, *grown).split(0.1)):
            for each in rows:
                assert side.setdefault(each.canonical(), number) == number
    assert len(side) == 400
    assert 20 <= sum(side.values()) <= 60


def test_a_larger_share_holds_out_what_a_smaller_one_did(tmp_path: Path) -> None:
    rows = load(tmp_path, *lines_of("chat", 300))
    assert set(rows.split(0.1)[1]) < set(rows.split(0.2)[1]) < set(rows.split(0.5)[1])


def test_the_template_moves_no_row_and_is_not_in_the_digest(tmp_path: Path) -> None:
    lines = lines_of("alpaca", 200)
    one, other = (load(tmp_path, *lines, template=template) for template in ("alpaca", "chat"))
    assert one.digest == other.digest
    assert [canonical(side) for side in one.split(0.2)] == [canonical(side) for side in other.split(0.2)]


def canonical(rows: tuple[Row, ...]) -> list[str]:
    return [each.canonical() for each in rows]


def test_equal_rows_stay_together_and_are_told(tmp_path: Path) -> None:
    lines = lines_of("chat", 50)
    rows = load(tmp_path, *lines, *lines)
    train, heldout = rows.split(0.2)
    assert not set(train) & set(heldout)
    assert len(train) + len(heldout) == 100
    assert rows.duplicates.count == 50
    assert rows.duplicates.places[:2] == ("rows.jsonl:51 repeats rows.jsonl:1", "rows.jsonl:52 repeats rows.jsonl:2")
    assert len(rows.duplicates.places) == 5
    assert load(tmp_path, *lines).duplicates == data.Duplicates()


def test_no_row_is_held_out_at_nought(tmp_path: Path) -> None:
    rows = load(tmp_path, row(USER, ANSWER))
    assert rows.split(0) == (rows.rows, ())


def test_both_sides_need_a_row(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="leaves no row to hold out: 1 rows"):
        load(tmp_path, row(USER, ANSWER)).split(1e-6)
    with pytest.raises(BadInput, match="leaves no row to train on"):
        load(tmp_path, row(USER, ANSWER)).split(1)


def test_each_assistant_turn_is_an_example(tmp_path: Path) -> None:
    first, second = load(tmp_path, row(SYSTEM, USER, ANSWER, USER, ANSWER)).rows[0].examples()
    assert first.plain() == {"prompt": [SYSTEM, USER], "completion": [ANSWER]}
    assert second.plain() == {"prompt": [SYSTEM, USER, ANSWER, USER], "completion": [ANSWER]}


def test_files_of_several_layouts_are_one_set_of_rows(tmp_path: Path) -> None:
    for layout in LAYOUTS:
        (tmp_path / f"{layout}.jsonl").write_text("\n".join(lines_of(layout, 3)), encoding="utf-8")
    rows = data.load(Data(path=tuple(f"{layout}.jsonl" for layout in LAYOUTS)), tmp_path)
    assert rows.name == "chat.jsonl, alpaca.jsonl, prompt_completion.jsonl, text.jsonl"
    assert rows.counts == dict.fromkeys(LAYOUTS, 3)
    assert rows.statistics() == {
        "file": rows.name,
        "digest": rows.digest,
        "rows": "12",
        "duplicates": "0",
        **{f"rows.{layout}": "3" for layout in LAYOUTS},
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("other", LAYOUTS)
def test_a_file_has_one_layout(tmp_path: Path, layout: str, other: str) -> None:
    lines = [*lines_of(layout, 2), *lines_of(other, 1)]
    if layout == other:
        assert load(tmp_path, *lines).counts == {layout: 3}
        return
    with pytest.raises(BadInput) as raised:
        load(tmp_path, *lines)
    assert raised.value.problems == (
        f"rows.jsonl:3: its layout is {other}, and rows.jsonl:1 is {layout}; a file has one layout",
    )


def test_a_layout_that_is_not_known_is_told_once_with_its_columns(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as raised:
        load(tmp_path, *['{"question": "a", "answer": "b"}'] * 30)
    assert len(raised.value.problems) == 1
    assert raised.value.problems[0].startswith(
        "rows.jsonl:1: its columns are question, answer, which is no known layout"
    )
    assert load(tmp_path, '{"question": "a", "answer": "b"}', columns={"prompt": "question", "completion": "answer"})


def test_a_column_that_no_row_has_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as raised:
        load(tmp_path, *lines_of("alpaca", 3), columns={"input": "context", "output": "output"})
    assert raised.value.problems == ("data.columns: no row has context (for input)",)


def test_two_loads_of_the_same_data_are_recognised_in_mlflow(tmp_path: Path, store: Store) -> None:
    filter_of = re.search(r'filter_string="(params.*)"', DOCUMENTATION.read_text(encoding="utf-8"))
    assert filter_of is not None
    experiment = store.client.create_experiment("digests")
    digests = [load(tmp_path, *lines_of("chat", count)).digest for count in (3, 4)]
    ids = []
    for digest in digests:
        ids.append(store.client.create_run(experiment).info.run_id)
        store.client.log_param(ids[-1], "data.digest", digest)
    found = store.client.search_runs([experiment], filter_of[1].replace("DIGEST", digests[1]))
    assert [run.info.run_id for run in found] == ids[1:]


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    lines = [json.dumps({"messages": [USER, ANSWER], **more}) for more in ({"id": 1}, {"source": "web"}, {"id": None})]
    assert load(tmp_path, *lines).unread == ("id", "source")
