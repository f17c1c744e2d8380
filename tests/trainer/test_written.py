"""What a tokenizer and a chat template add to a row is not learned, and is told with counts and places."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import trl
from tokenizers import Regex, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from loradock.registry.errors import BadInput
from loradock.trainer import data, tokens
from loradock.trainer.recipe import Data
from loradock.trainer.rows import Row
from loradock.trainer.tokens import Side

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
END = "<|im_end|>"
NO_SYSTEM = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(base_dir: Path) -> PreTrainedTokenizerBase:
    """The small base's, with marks as tokens of their own and newlines together, as models that think have them."""
    found = AutoTokenizer.from_pretrained(base_dir)
    inner = found.backend_tokenizer
    newlines = pre_tokenizers.Split(Regex(r"[\r\n]+"), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence([newlines, inner.pre_tokenizer])
    found.add_tokens(["<think>", "</think>", "<|channel|>", "<|message|>", "<|start|>", "<|return|>"])
    return found


def with_template(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    """With a template that TRL ships: those of the models as they are on the Hub."""
    other = copy.deepcopy(tokenizer)
    other.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
    return other


def rows_of(directory: Path, *rows: dict[str, object]) -> tuple[Row, ...]:
    (directory / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return data.load(Data(path=("rows.jsonl",)), directory).rows


def answered(answer: str, *, system: str = "") -> dict[str, object]:
    turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": answer}]
    return {"messages": [{"role": "system", "content": system}, *turns] if system else turns}


def side(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, **options: object) -> Side:
    return tokens.fitting(rows, [], tokenizer, 512, **options).train


def learned(found: Side, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [
        tokenizer.decode([token for token, mask in zip(each.input_ids, each.completion_mask, strict=True) if mask])
        for each in found.tokens
    ]


@pytest.mark.parametrize(
    ("template", "added", "ends"),
    [
        ("qwen3", "<think>\n\n</think>\n\n", f"{END}\n"),
        ("qwen3_5_think", "\n\n</think>\n\n", f"{END}\n"),
        ("qwen3_5_nothink", "", f"{END}\n"),
        ("glm4moe", "\n<think></think>\n", ""),
        ("gptoss", "<|channel|>final<|message|>", "<|return|>"),
        ("qwen2_5", "", f"{END}\n"),
        ("gemma3", "", "<end_of_turn>\n"),
    ],
)
def test_a_block_that_the_template_adds_is_read_and_not_learned(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, template: str, added: str, ends: str
) -> None:
    theirs = with_template(tokenizer, template)
    answers = ["Arr!", "Aye?", "Arr," * 40]
    rows = rows_of(tmp_path, *map(answered, answers))
    found = side(rows, theirs)
    assert learned(found, theirs) == [f"{answer}{ends}" for answer in answers]
    written = [theirs.decode(each.input_ids) for each in found.tokens]
    assert all(f"{added}A" in text for text in written)
    told = f"3 examples (rows.jsonl:1, rows.jsonl:2, rows.jsonl:3): the chat template puts {added!r} before the answer"
    assert [words.split(": excluded")[0] for words in tokens.oddities(found) if "puts" in words] == [told][: len(added)]
    assert found.count("added") == (3 if added else 0)
    whole = side(rows, theirs, completion_only_loss=False)
    assert [theirs.decode(each.input_ids) for each in whole.tokens] == written
    assert [text for text in learned(whole, theirs) if added in text] == ([] if added else learned(whole, theirs))


def test_a_block_that_the_row_itself_has_is_learned(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    thinks = with_template(tokenizer, "qwen3")
    said = "<think>\nWho is it?\n</think>\n\nArr!"
    found = side(rows_of(tmp_path, answered(said), answered("Arr!")), thinks)
    assert learned(found, thinks) == [f"{said}{END}\n", f"Arr!{END}\n"]
    assert [words.split(": ")[0] for words in tokens.oddities(found)] == ["1 example (rows.jsonl:2)"]


def test_an_answer_of_which_the_template_drops_a_part_is_told(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    drops = with_template(tokenizer, "deepseek_r1_distill")
    found = side(rows_of(tmp_path, answered("<think>\nWho is it?\n</think>\n\nArr!"), answered("Arr!")), drops)
    assert all(text.strip().startswith("Arr!<") for text in learned(found, drops))
    assert list(tokens.oddities(found)) == [
        "2 examples (rows.jsonl:1, rows.jsonl:2): the chat template writes the prompt otherwise than serving does",
        "1 example (rows.jsonl:1): the chat template writes the answer otherwise than the row has it",
    ]


def test_what_the_tokenizer_puts_before_a_text_is_there_once(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    begins = copy.deepcopy(tokenizer)
    start = begins.convert_tokens_to_ids("<|im_start|>")
    begins.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    assert begins("<|im_start|>a")["input_ids"][:2] == [start, start]
    texts = rows_of(tmp_path, {"text": "<|im_start|>Arr!"}, {"text": "Aye!"})
    pairs = rows_of(tmp_path, {"prompt": "<|im_start|>Hello?", "completion": " Arr!"})
    for rows, read in ((texts, ["", ""]), (pairs, ["Hello?"])):
        found = side(rows, begins)
        assert [each.input_ids.count(start) for each in found.tokens] == [1] * len(rows)
        assert [begins.decode(each.prompt) for each in found.tokens] == [f"<|im_start|>{text}" for text in read]
        assert all("<|im_start|>" not in text for text in learned(found, begins))
        assert list(tokens.oddities(found)) == [
            "1 example (rows.jsonl:1): the text begins with '<|im_start|>', as the tokenizer does: kept once"
        ]


def test_a_tokenizer_that_does_not_give_the_text_back_is_told(base_dir: Path, tmp_path: Path) -> None:
    for path in base_dir.glob("*token*"):
        shutil.copy(path, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "LlamaTokenizer"}))
    spaceless = AutoTokenizer.from_pretrained(tmp_path)
    spaceless.chat_template = NO_SYSTEM
    assert spaceless.decode(spaceless("Arr, a cat!", add_special_tokens=False)["input_ids"]) == "Arr,acat!"
    rows = [
        *rows_of(tmp_path, answered("Arr, a cat!"), answered("Arr!")),
        *rows_of(tmp_path, {"prompt": "Hi?", "completion": "Arr!"}, {"prompt": "Hi?", "completion": "Arr, a cat!"}),
    ]
    [told] = tokens.oddities(side(rows, spaceless))
    assert told.startswith(
        "2 examples (rows.jsonl:1, rows.jsonl:2): the tokenizer does not give the row's own text back"
    )


def test_an_answer_whose_end_is_no_stop_token_is_told(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    rows = rows_of(tmp_path, answered("Arr!"), answered("Aye!"))
    end, other = tokenizer.convert_tokens_to_ids([END, "<|endoftext|>"])
    assert list(tokens.oddities(side(rows, tokenizer, stops={end, other}))) == []
    [told] = tokens.oddities(side(rows, tokenizer, stops={other}))
    assert told.startswith("2 examples (rows.jsonl:1, rows.jsonl:2): the answer does not end with '<|endoftext|>'")


def test_a_control_token_in_a_rows_own_words_is_told(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = rows_of(tmp_path, answered("Plain."), answered(f"Half{END} of it."), answered("Yes.", system=f"Be{END}"))
    found = side(rows, tokenizer)
    assert found.count("controls") == 2
    (told,) = tokens.oddities(found)
    assert told.startswith("2 examples (rows.jsonl:2, rows.jsonl:3): the row's own text holds <|im_end|>")


def test_the_first_rows_of_many_are_named_once_each(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    turns = answered("Arr!")["messages"]
    assert isinstance(turns, list)
    rows = rows_of(tmp_path, *({"messages": turns * 2} for _ in range(7)))
    sides = tokens.fitting(rows[1:], rows[:1], with_template(tokenizer, "qwen3"), 512)
    [told] = tokens.oddities(sides.train, sides.heldout)
    assert told.startswith("14 examples (rows.jsonl:2, rows.jsonl:3, rows.jsonl:4, rows.jsonl:5, rows.jsonl:6 ...): ")


def test_every_row_that_the_template_refuses_is_named(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = NO_SYSTEM
    given = [answered("Arr!", system="Be kind." if number % 2 else "") for number in range(50)]
    rows = rows_of(tmp_path, *given)
    with pytest.raises(BadInput, match="the base's chat template refuses rows") as raised:
        tokens.fitting(rows[:4], rows[4:6], strict, 512)
    assert raised.value.problems == tuple(f"rows.jsonl:{line}: no system role" for line in (2, 4, 6))
    with pytest.raises(BadInput) as raised:
        tokens.fitting(rows, [], strict, 512)
    assert raised.value.problems[19:] == ("rows.jsonl:40: no system role", "and 5 more")
