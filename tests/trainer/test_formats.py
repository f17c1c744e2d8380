"""Every layout is recognised by its columns or taken by its name, and becomes the rows it means."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from loradock.trainer import data, formats
from loradock.trainer.recipe import Data
from loradock.trainer.rows import Chat, ChatExample, Instruction, Message, Pair, Row, Text, TextExample

USER, ANSWER, SYSTEM = Message("user", "2 + 2?"), Message("assistant", "4"), Message("system", "Be brief.")
TURNS = [USER.plain(), ANSWER.plain()]


def told(row: dict[str, Any]) -> str:
    return formats.recognise(formats.renamed(row, {}), {})


def parse(row: dict[str, Any], layout: str = "", **settings: Any) -> Row:
    given = Data(path="rows.jsonl", **settings)
    named = formats.renamed(row, given.columns)
    layout = layout or formats.recognise(named, given.columns)
    assert list(formats.faults(named, layout)) == []
    return formats.parse(named, layout, given)


def faults(row: dict[str, Any], layout: str = "") -> list[str]:
    named = formats.renamed(row, {})
    return list(formats.faults(named, layout or formats.recognise(named, {})))


SHAREGPT = {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}], "id": "x_1"}
ROWS: list[tuple[str, dict[str, Any], Row]] = [
    ("chat", {"messages": TURNS}, Chat((USER, ANSWER))),
    ("chat", SHAREGPT, Chat((USER, ANSWER))),
    (
        "chat",
        {"conversations": [{"from": "system", "value": "Be brief."}, *SHAREGPT["conversations"]]},
        Chat((SYSTEM, USER, ANSWER)),
    ),
    ("chat", {"messages": SHAREGPT["conversations"]}, Chat((USER, ANSWER))),
    ("chat", {"conversations": TURNS}, Chat((USER, ANSWER))),
    ("chat", {"messages": [turn | {"tool_calls": None} for turn in TURNS], "tools": None}, Chat((USER, ANSWER))),
    (
        "chat",
        {"messages": '[{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]'},
        Chat((USER, ANSWER)),
    ),
    ("alpaca", {"instruction": "Add.", "output": "4"}, Instruction("Add.", "4")),
    ("alpaca", {"instruction": "Add.", "input": "2 2", "output": "4"}, Instruction("Add.", "4", "2 2")),
    ("alpaca", {"instruction": "Add.", "input": None, "output": "4", "system": " "}, Instruction("Add.", "4")),
    (
        "alpaca",
        {"instruction": "Add.", "input": "", "output": "4", "text": "### Instruction: ..."},
        Instruction("Add.", "4"),
    ),
    ("prompt_completion", {"prompt": "2 + 2 =", "completion": " 4"}, Pair(TextExample("2 + 2 =", " 4"))),
    (
        "prompt_completion",
        {"prompt": "As JSON:", "completion": '[{"role": "user"}]'},
        Pair(TextExample("As JSON:", '[{"role": "user"}]')),
    ),
    ("prompt_completion", {"prompt": TURNS[:1], "completion": TURNS[1:]}, Pair(ChatExample((USER,), ANSWER))),
    ("text", {"text": "Once.", "source": "a book"}, Text("Once.")),
]


@pytest.mark.parametrize(("layout", "row", "meant"), ROWS)
def test_a_layout_is_recognised_and_parsed(layout: str, row: dict[str, Any], meant: Row) -> None:
    assert told(row) == layout
    assert parse(row) == parse(row, layout) == meant
    assert meant.format == layout


@pytest.mark.parametrize("speaker", ["gpt", "chatgpt", "bot", "model", "assistant"])
def test_who_speaks_has_many_names(speaker: str) -> None:
    turns = [{"from": "prompter", "value": "2 + 2?"}, {"from": speaker, "value": "4"}]
    assert parse({"conversations": turns}) == Chat((USER, ANSWER))


@pytest.mark.parametrize(
    ("columns", "row", "meant"),
    [
        ({"prompt": "question", "completion": "answer"}, {"question": "a", "answer": "b"}, Pair(TextExample("a", "b"))),
        (
            {"instruction": "instruction", "input": "context", "output": "response"},
            {"instruction": "a", "context": "b", "response": "c", "category": "d"},
            Instruction("a", "c", "b"),
        ),
        ({"text": "body"}, {"body": "a", "title": "b"}, Text("a")),
        (
            {"messages": "dialog", "role": "speaker", "content": "says"},
            {"dialog": [{"speaker": "human", "says": "2 + 2?"}, {"speaker": "bot", "says": "4"}]},
            Chat((USER, ANSWER)),
        ),
        ({"prompt": "a", "completion": "b"}, {"messages": TURNS, "a": "x", "b": "y"}, Pair(TextExample("x", "y"))),
        (
            {"prompt": "completion", "completion": "prompt"},
            {"prompt": "a", "completion": "b"},
            Pair(TextExample("b", "a")),
        ),
        ({"text": "output"}, {"instruction": "a", "output": "b"}, Text("b")),
    ],
)
def test_columns_have_other_names(columns: dict[str, str], row: dict[str, Any], meant: Row) -> None:
    assert parse(row, columns=columns) == meant


@pytest.mark.parametrize(
    "row", [{}, {"question": "a", "answer": "b"}, {"instruction": "a"}, {"chosen": "a", "rejected": "b"}]
)
def test_other_columns_tell_nothing(row: dict[str, Any]) -> None:
    assert told(row) == ""


@pytest.mark.parametrize(
    ("layout", "row"),
    [
        ("chat", {"messages": TURNS, "system": "", "images": [], "history": None, "label": True}),
        ("chat", {"messages": TURNS, "image": "https://example.org/a.png", "label": 0, "id": 3}),
        ("alpaca", {"instruction": "a", "output": "b", "history": [], "system": "Be brief."}),
        ("text", {"text": "a", "history": "of Rome", "label": 2}),
    ],
)
def test_columns_that_change_nothing_are_no_fault(layout: str, row: dict[str, Any]) -> None:
    assert faults(row, layout) == []


@pytest.mark.parametrize(
    ("layout", "row", "fault"),
    [
        ("alpaca", {"instruction": "a"}, "it has no output"),
        ("alpaca", {"instruction": "a", "output": None}, "it has no output"),
        ("alpaca", {"instruction": "a", "output": 42}, "it has an output that is not text"),
        ("alpaca", {"instruction": " ", "output": "b"}, "it has an empty instruction"),
        ("alpaca", {"instruction": "a", "output": "b", "input": ["c"]}, "it has an input that is not text"),
        ("alpaca", {"instruction": "a", "output": "\ud83d"}, "it has an output with half of a surrogate pair"),
        ("prompt_completion", {"prompt": "a"}, "it has no completion"),
        ("prompt_completion", {"prompt": "a", "completion": ""}, "it has an empty completion"),
        ("prompt_completion", {"prompt": TURNS[:1], "completion": "4"}, "its prompt and completion are neither both"),
        ("prompt_completion", {"prompt": TURNS[:1], "completion": []}, "it needs a prompt of messages and a compl"),
        ("prompt_completion", {"prompt": [], "completion": TURNS[1:]}, "it needs a prompt of messages and a compl"),
        ("prompt_completion", {"prompt": TURNS, "completion": TURNS}, "it needs a prompt of messages and a compl"),
        ("prompt_completion", {"prompt": TURNS, "completion": TURNS[:1]}, "it ends with the user's turn"),
        ("prompt_completion", {"prompt": TURNS[:1], "completion": TURNS[1:], "tools": [{}]}, "it has tools"),
        ("text", {}, "it has no text"),
        ("text", {"text": 1}, "it has a text that is not text"),
        ("chat", {"messages": '[{"role"'}, "it has no list of messages"),
        ("chat", {"messages": [TURNS[0], {"role": "tool", "content": "4"}]}, "message 2 has the role 'tool'"),
        (
            "chat",
            {"conversations": [{"from": "function_call", "value": "f()"}]},
            "message 1 has the role 'function_call'",
        ),
        ("chat", {"messages": [TURNS[0], TURNS[1] | {"tool_calls": [{}]}]}, "message 2 has 'tool_calls', which cannot"),
        ("chat", {"messages": TURNS, "system": "Be brief."}, "it has system: a system message of its own"),
        ("chat", {"messages": TURNS, "rejected": [TURNS[1]]}, "it has rejected: a rejected answer"),
        ("chat", {"messages": TURNS, "chat_template_kwargs": {"enable_thinking": False}}, "it has chat_template_kwarg"),
        ("chat", {"messages": TURNS, "images": ["a.png"]}, "it has images, and only text"),
        ("chat", {"messages": TURNS, "label": False}, "it is labelled false"),
        ("alpaca", {"instruction": "a", "output": "b", "history": [["c", "d"]]}, "it has history: earlier turns"),
        ("prompt_completion", {"prompt": "a", "completion": "b", "label": False}, "it is labelled false"),
    ],
)
def test_a_fault_is_told(layout: str, row: dict[str, Any], fault: str) -> None:
    found = faults(row, layout)
    assert len(found) == 1
    assert found[0].startswith(fault)


def test_a_named_format_is_not_inspected(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b", "text": "c"}\n', encoding="utf-8")
    assert data.load(Data(path="rows.jsonl"), tmp_path).counts == {"prompt_completion": 1}
    assert data.load(Data(path="rows.jsonl", format="text"), tmp_path).rows == (Text("c"),)


def test_the_alpaca_template() -> None:
    assert parse({"instruction": "Add.", "input": "2 2", "output": "4", "system": "Be brief."}).examples() == (
        TextExample("Be brief.\n### Instruction:\nAdd.\n### Input:\n2 2\n### Response:\n", "4"),
    )
    assert parse({"instruction": "Add 2 to 2.", "input": "", "output": "4"}).examples() == (
        TextExample("### Instruction:\nAdd 2 to 2.\n### Response:\n", "4"),
    )


def test_instructions_as_conversations() -> None:
    row = {"instruction": "Add.", "input": "2 2", "output": "4", "system": "Be brief."}
    assert parse(row, template="chat").examples() == (ChatExample((SYSTEM, Message("user", "Add.\n2 2")), ANSWER),)
    assert parse({"instruction": "2 + 2?", "output": "4"}, template="chat").examples() == (
        ChatExample((USER,), ANSWER),
    )


def test_the_prompts_own_answers_are_not_learned() -> None:
    row = parse({"prompt": [*TURNS, TURNS[0]], "completion": TURNS[1:]})
    assert row.examples() == (ChatExample((USER, ANSWER, USER), ANSWER),)
    assert len(parse({"messages": [*TURNS, *TURNS]}).examples()) == 2


DOCUMENTATION = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
SECTIONS = {
    name: DOCUMENTATION.split(f"\n### {name}\n")[1].split("\n## ")[0].split("\n### ")[0] for name in formats.FORMATS
}


@pytest.mark.parametrize("layout", formats.FORMATS)
def test_the_documented_rows_are_of_the_layout_they_stand_under(layout: str) -> None:
    rows = re.findall(r"```json\n(.+)\n```", SECTIONS[layout])
    assert rows
    assert {parse(json.loads(row)).format for row in rows} == {layout}


def test_the_documented_template_is_what_is_written() -> None:
    row = re.findall(r"```json\n(.+)\n```", SECTIONS["alpaca"])[0]
    example = parse(json.loads(row)).examples()[0]
    assert f"```text\n{example.prompt}{example.completion}\n```" in DOCUMENTATION
