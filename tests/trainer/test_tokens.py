"""Loss falls on the assistant's words alone, and what is too long is left out by us, counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from registry.errors import BadInput
from trainer import tokens
from trainer.data import Message, Row


@pytest.fixture(scope="module")
def tokenizer(base_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(base_dir)


def row(question: str, answer: str = "Arr!") -> Row:
    return Row((Message("user", question), Message("assistant", answer)))


def test_lengths_are_those_of_the_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    sides = tokens.fitting([row("Hello?")], [row("Hello? " * 20)], tokenizer, 512)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Arr!"}], tokenize=False
    )
    assert sides.train.lengths == (len(tokenizer(text, add_special_tokens=False)["input_ids"]),)
    assert sides.heldout.lengths[0] > sides.train.lengths[0]


def test_what_is_too_long_is_left_out_and_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    short, long = row("Hello?"), row("word " * 200)
    sides = tokens.fitting([short, long, short], [short], tokenizer, 64)
    assert (len(sides.train.examples), sides.train.left_out, sides.heldout.left_out) == (2, 1, 0)
    assert sides.train.statistics()["left_out"] == "1"
    exact = sides.train.lengths[0]
    assert tokens.fitting([short], [short], tokenizer, exact).train.left_out == 0


@pytest.mark.parametrize("side", ["train on", "hold out"])
def test_a_side_that_stays_empty_is_refused(tokenizer: PreTrainedTokenizerBase, side: str) -> None:
    short, long = row("Hello?"), row("word " * 200)
    rows = ([long], [short]) if side == "train on" else ([short], [long])
    with pytest.raises(BadInput, match=f"none of the 1 examples to {side} fits into 64 tokens") as raised:
        tokens.fitting(*rows, tokenizer, 64)
    assert "the shortest has 2" in raised.value.hint
