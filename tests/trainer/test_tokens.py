"""Loss falls on the completion's tokens alone, which are those that serving makes, and what is too long is counted."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from loradock.registry.errors import BadInput
from loradock.trainer import tokens
from loradock.trainer.rows import Chat, Instruction, Message, Pair, Row, Text, TextExample
from loradock.trainer.tokens import Side, Tokens

SYSTEM = Message("system", "Be kind.")
END = "<|im_end|>"
DEFAULT = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
# A template of the thinking kind: an answer is asked for with an empty thought, which is gone once there is one.
THINKING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(base_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(base_dir)


def with_template(tokenizer: PreTrainedTokenizerBase, template: str | None) -> PreTrainedTokenizerBase:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def chat(question: str, answer: str = "Arr!") -> Chat:
    return Chat((Message("user", question), Message("assistant", answer)))


def pair(prompt: str, completion: str) -> Pair:
    return Pair(TextExample(prompt, completion))


def side(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, completion_only_loss: bool = True) -> Side:
    return tokens.fitting(rows, [], tokenizer, 512, completion_only_loss=completion_only_loss).train


def parts(found: Tokens, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What is read and what is learned, as text."""
    assert len(found.input_ids) == len(found.completion_mask)
    marked = list(zip(found.input_ids, found.completion_mask, strict=True))
    return tuple(tokenizer.decode([token for token, mask in marked if mask == which]) for which in (0, 1))


@pytest.mark.parametrize(
    ("row", "read", "learned"),
    [
        (chat("Hello?"), f"{DEFAULT}<|im_start|>user\nHello?{END}\n<|im_start|>assistant\n", f"Arr!{END}\n"),
        (
            Chat((SYSTEM, *chat("Hello?").messages)),
            f"<|im_start|>system\nBe kind.{END}\n<|im_start|>user\nHello?{END}\n<|im_start|>assistant\n",
            f"Arr!{END}\n",
        ),
        (pair("2 + 2 =", " 4"), "2 + 2 =", f" 4{END}"),
        (pair("to", "gether"), "to", f"gether{END}"),
        (pair("a\n", "\nb"), "a\n", f"\nb{END}"),
        (pair("a", f"b{END}"), "a", f"b{END}"),
        (
            Instruction("Add.", "4", "2 2"),
            "### Instruction:\nAdd.\n### Input:\n2 2\n### Response:\n",
            f"4{END}",
        ),
        (Text("Once upon a time."), "", f"Once upon a time.{END}"),
    ],
)
def test_what_is_read_and_what_is_learned(
    tokenizer: PreTrainedTokenizerBase, row: Row, read: str, learned: str
) -> None:
    found = side([row], tokenizer)
    assert parts(found.tokens[0], tokenizer) == (read, learned)
    assert found.completion_tokens[0] == sum(found.tokens[0].completion_mask) > 0
    assert found.odd == {}


def test_a_prompt_has_the_tokens_that_serving_sees(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [pair("to", "gether"), pair("a\n", "\nb"), Instruction("Add.", "\n4")]
    for row, found in zip(texts, side(texts, tokenizer).tokens, strict=True):
        prompt = row.examples()[0].prompt
        served = tokenizer(prompt)["input_ids"]
        assert found.input_ids[: len(served)] == tuple(served)
        assert found.completion_mask[: len(served)] == (0,) * len(served)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert side([chat("Hi")], tokenizer).tokens[0].input_ids[: len(asked)] == tuple(asked)


def test_each_turn_of_the_assistant_is_learned_once(tokenizer: PreTrainedTokenizerBase) -> None:
    row = Chat((*chat("One?", "First.").messages, *chat("Two?", "Second.").messages))
    first, second = side([row], tokenizer).tokens
    assert parts(first, tokenizer)[1] == f"First.{END}\n"
    assert parts(second, tokenizer)[1] == f"Second.{END}\n"
    assert parts(second, tokenizer)[0].endswith(f"First.{END}\n<|im_start|>user\nTwo?{END}\n<|im_start|>assistant\n")


def test_without_completion_only_loss_all_is_learned_once(tokenizer: PreTrainedTokenizerBase) -> None:
    row = Chat((*chat("One?", "First.").messages, *chat("Two?", "Second.").messages))
    found = side([row, pair("a", "b")], tokenizer, completion_only_loss=False)
    assert len(found.tokens) == 2
    assert all(all(each.completion_mask) for each in found.tokens)
    assert found.tokens[0].input_ids == side([row], tokenizer).tokens[1].input_ids


def test_the_template_that_writes_an_answer_differently_is_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    thinking = with_template(tokenizer, THINKING)
    found = side([chat("Hello?"), pair("a", "b")], thinking)
    assert found.statistics()["not_a_prefix"] == "1"
    assert found.tokens[0].prompt == tuple(
        thinking.apply_chat_template(
            [{"role": "user", "content": "Hello?"}], add_generation_prompt=True, return_dict=False
        )
    )
    assert parts(found.tokens[0], thinking) == (
        f"<|im_start|>user\nHello?{END}\n<|im_start|>assistant\n",
        f"Arr!{END}\n",
    )


def test_a_tokenizer_that_puts_a_space_before_every_text_puts_none_before_the_completion() -> None:
    letters = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "b": 5, "\n": 6}
    inner = Tokenizer(models.BPE(letters, [], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    assert fast("b", add_special_tokens=False)["input_ids"] == [3, 5]
    assert side([pair("a\n", "b"), Text("ab")], fast).tokens == (
        Tokens((1, 3, 4, 6, 5, 2), (0, 0, 0, 0, 1, 1), (1, 3, 4, 6)),
        Tokens((1, 3, 4, 5, 2), (0, 1, 1, 1, 1), (1,)),
    )


def test_many_rows_of_all_kinds_keep_their_order(tokenizer: PreTrainedTokenizerBase) -> None:
    rows: list[Row] = []
    for number in range(1100):
        rows += [chat(f"{number}?", f"{number}!"), Text(f"{number}."), pair(f"{number}", ".")]
    random.Random(1).shuffle(rows)  # noqa: S311
    found = side(rows, tokenizer)
    for row, example, ids in zip(rows, found.examples, found.tokens, strict=True):
        assert row.examples() == (example,)
        completion = example.completion
        text = completion if isinstance(completion, str) else f"{completion.content}{END}\n"
        assert parts(ids, tokenizer)[1].removesuffix(END) == text


def test_what_is_too_long_is_left_out_and_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    short, long = chat("Hello?"), chat("word " * 200)
    sides = tokens.fitting([short, long, short], [short], tokenizer, 64)
    assert (len(sides.train.examples), sides.train.left_out, sides.heldout.left_out) == (2, 1, 0)
    assert sides.train.too_long[0] > 200
    assert sides.train.statistics() == {
        "examples": "2",
        "left_out": "1",
        **dict.fromkeys(("not_a_prefix", "added", "rewritten", "garbled", "begins_twice", "controls", "endless"), "0"),
        "tokens": str(2 * sides.heldout.lengths[0]),
        "tokens_median": str(sides.heldout.lengths[0]),
        "tokens_max": str(sides.heldout.lengths[0]),
        "completion_tokens": str(2 * sides.heldout.completion_tokens[0]),
    }
    exact = sides.train.lengths[0]
    assert tokens.fitting([short], [], tokenizer, exact).train.left_out == 0
    assert tokens.fitting([short, chat("Hello? Hello?")], [], tokenizer, exact).train.left_out == 1


def test_nothing_held_out_is_an_empty_side(tokenizer: PreTrainedTokenizerBase) -> None:
    sides = tokens.fitting([chat("Hello?")], [], tokenizer, 64)
    assert sides.heldout == Side((), ())
    assert sides.heldout.statistics()["tokens_max"] == "0"


@pytest.mark.parametrize("what", ["train on", "hold out"])
def test_a_side_that_stays_empty_is_refused(tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    short, long = chat("Hello?"), chat("word " * 200)
    rows = ([long], [short]) if what == "train on" else ([short], [long])
    with pytest.raises(BadInput, match=f"none of the 1 examples to {what} fits into 64 tokens") as raised:
        tokens.fitting(*rows, tokenizer, 64)
    assert "the shortest has 2" in raised.value.hint


def test_chat_rows_need_a_chat_template_and_no_others_do(tokenizer: PreTrainedTokenizerBase) -> None:
    bare = with_template(tokenizer, None)
    with pytest.raises(BadInput, match="has no chat template, so chat rows cannot be written for it") as raised:
        side([chat("Hello?")], bare)
    assert "use the instruct model" in raised.value.hint
    assert len(side([pair("a", "b"), Text("c"), Instruction("d", "e")], bare).tokens) == 3


def test_a_template_that_raises_is_told(tokenizer: PreTrainedTokenizerBase) -> None:
    strict = with_template(tokenizer, "{{ raise_exception('no system role') }}")
    with pytest.raises(BadInput, match="the base's chat template refuses rows") as raised:
        side([chat("Hello?")], strict)
    assert raised.value.problems == ("no system role",)


def test_a_completion_that_leaves_no_token_is_told(tokenizer: PreTrainedTokenizerBase) -> None:
    silent = with_template(tokenizer, "{{ messages[0]['content'] }}")
    with pytest.raises(BadInput, match="leaves completions empty") as raised:
        side([chat("Hello?", "one"), chat("Hello?", "two")], silent)
    assert raised.value.problems[0] == "nothing is left of [{'role': 'assistant', 'content': 'one'}]"


def trained(dataset: Sequence[dict[str, object]], tokenizer: PreTrainedTokenizerBase, output: Path) -> SFTTrainer:
    tiny = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    arguments = SFTConfig(
        output_dir=str(output),
        completion_only_loss=True,
        max_length=512,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        report_to="none",
    )
    return SFTTrainer(
        LlamaForCausalLM(tiny),
        args=arguments,
        train_dataset=Dataset.from_list(list(dataset)),
        processing_class=tokenizer,
    )


def test_trl_writes_the_same_tokens_and_takes_ours_as_they_are(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = [
        chat("Hello?"),
        Chat((SYSTEM, *chat("One?", "First.\n").messages, *chat("Two?", " Second").messages)),
        chat("  spaces \n", "<|im_start|>é\u2028"),
        chat("a longer question, so that the batch is padded " * 3),
    ]
    found = side(rows, tokenizer)
    theirs = trained([example.plain() for example in found.examples], tokenizer, tmp_path)
    ours = trained([each.plain() for each in found.tokens], tokenizer, tmp_path)
    expected = [
        {
            "input_ids": list(each.input_ids),
            "labels": [
                token if mask else -100 for token, mask in zip(each.input_ids, each.completion_mask, strict=True)
            ],
        }
        for each in found.tokens
    ]
    assert theirs.train_dataset.select_columns(["input_ids", "labels"]).to_list() == expected
    assert ours.train_dataset.to_list() == expected

    batch = ours.data_collator(ours.train_dataset.to_list())
    padding = batch["attention_mask"] == 0
    assert padding.any()
    assert torch.equal(batch["labels"][padding], torch.full_like(batch["labels"][padding], -100))
    for row, each in zip(batch["labels"], found.tokens, strict=True):
        assert int((row != -100).sum()) == sum(each.completion_mask)


def test_the_histogram_shows_both_sides_and_the_limit(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [chat("word " * count) for count in (1, 5, 9, 30, 300)]
    sides = tokens.fitting(rows, rows[:2], tokenizer, 50)
    axes = tokens.histogram(sides, 50).axes[0]
    heights = [sum(bar.get_height() for bar in bars) for bars in axes.containers]
    assert heights == [5, 2]
    assert "max_length 50: 2 beyond it" in [text.get_text() for text in axes.get_legend().get_texts()]
    assert "in the last bar" in axes.get_xlabel()
    assert tokens.histogram(tokens.fitting(rows[:1], [], tokenizer, 50), 50).axes[0].get_xlabel() == "tokens"
