"""Examples as tokens: written as serving will see them, with a mask of what carries loss, and none cut."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from registry.errors import BadInput
from trainer.rows import ChatExample, Example, Row, TextExample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BATCH: Final = 1000
_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Tokens:
    """One example as token ids, and beside each whether it carries loss (1) or not (0)."""

    input_ids: tuple[int, ...]
    completion_mask: tuple[int, ...]

    def plain(self) -> dict[str, list[int]]:
        """A row that trainers take as it is: TRL masks, cuts and leaves out nothing of what has labels and fits."""
        pairs = zip(self.input_ids, self.completion_mask, strict=True)
        return {"input_ids": list(self.input_ids), "labels": [token if kept else -100 for token, kept in pairs]}


@dataclass(frozen=True, slots=True)
class Side:
    """The examples of one side of the split that fit."""

    examples: tuple[Example, ...]
    tokens: tuple[Tokens, ...]
    """Those of each example, in the same order."""
    too_long: tuple[int, ...] = ()
    """The lengths of the examples that did not fit, and are left out."""
    not_a_prefix: int = 0
    """Examples whose whole does not begin with their prompt as serving writes it; thinking templates do that."""

    @property
    def left_out(self) -> int:
        """Examples that were longer than max_length."""
        return len(self.too_long)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each, prompt and completion."""
        return tuple(len(tokens.input_ids) for tokens in self.tokens)

    @property
    def completion_tokens(self) -> tuple[int, ...]:
        """Tokens of each that carry loss."""
        return tuple(sum(tokens.completion_mask) for tokens in self.tokens)

    def statistics(self) -> dict[str, str]:
        """Counts and lengths, as text."""
        return {
            "examples": str(len(self.examples)),
            "left_out": str(self.left_out),
            "not_a_prefix": str(self.not_a_prefix),
            "tokens": str(sum(self.lengths)),
            "tokens_median": f"{statistics.median(self.lengths or [0]):g}",
            "tokens_max": str(max(self.lengths, default=0)),
            "completion_tokens": str(sum(self.completion_tokens)),
        }


@dataclass(frozen=True, slots=True)
class Sides:
    """What is trained on, and what only measures."""

    train: Side
    heldout: Side


def fitting(
    train: Sequence[Row],
    heldout: Sequence[Row],
    tokenizer: Any,
    max_length: int,
    *,
    completion_only_loss: bool = True,
) -> Sides:
    """The examples that are at most `max_length` tokens long, as tokens; a side without rows stays empty.

    Without `completion_only_loss` every token carries loss, and a conversation is one example: its last turn with all
    before it. Raises BadInput when none of a side's examples fits, or when the tokenizer cannot write one.
    """
    return Sides(
        *(
            _side(rows, tokenizer, max_length, what=what, whole=not completion_only_loss)
            for rows, what in ((train, "train on"), (heldout, "hold out"))
        )
    )


def _side(rows: Sequence[Row], tokenizer: Any, max_length: int, *, what: str, whole: bool) -> Side:
    examples = [example for row in rows for example in (row.examples()[-1:] if whole else row.examples())]
    kept: list[tuple[Example, Tokens]] = []
    too_long: list[int] = []
    empty: list[Example] = []
    broken = 0
    for example, (prompt, ids) in zip(examples, _written(examples, tokenizer), strict=True):
        begins = _common(prompt, ids)
        broken += begins < len(prompt)
        if begins == len(ids):
            empty.append(example)
        elif len(ids) > max_length:
            too_long.append(len(ids))
        else:
            mask = (int(whole),) * begins + (1,) * (len(ids) - begins)
            kept.append((example, Tokens(tuple(ids), mask)))
    if empty:
        shown = [f"nothing is left of {example.plain()['completion']!r:.80}" for example in empty[:_SHOWN]]
        more = [f"and {len(empty) - _SHOWN:,} more"] if len(empty) > _SHOWN else []
        raise BadInput("the base's tokenizer leaves completions empty", problems=shown + more)
    if examples and not kept:
        raise BadInput(
            f"none of the {len(examples)} examples to {what} fits into {max_length} tokens",
            hint=f"raise training.max_length: the shortest has {min(too_long)} tokens",
        )
    return Side(tuple(example for example, _ in kept), tuple(tokens for _, tokens in kept), tuple(too_long), broken)


def _written(examples: Sequence[Example], tokenizer: Any) -> Iterator[tuple[list[int], list[int]]]:
    """Each example's prompt as serving writes it, and its prompt with its completion, as token ids."""
    chats = _batches([example for example in examples if isinstance(example, ChatExample)], _chats, tokenizer)
    texts = _batches([example for example in examples if isinstance(example, TextExample)], _texts, tokenizer)
    for example in examples:
        yield next(chats if isinstance(example, ChatExample) else texts)


def _batches(
    examples: Sequence[Any],
    write: Callable[[Sequence[Any], Any], Iterator[tuple[list[int], list[int]]]],
    tokenizer: Any,
) -> Iterator[tuple[list[int], list[int]]]:
    for start in range(0, len(examples), _BATCH):
        yield from write(examples[start : start + _BATCH], tokenizer)


def _chats(examples: Sequence[ChatExample], tokenizer: Any) -> Iterator[tuple[list[int], list[int]]]:
    if not tokenizer.chat_template:
        raise BadInput(
            "the base's tokenizer has no chat template, so chat rows cannot be written for it",
            hint="use the instruct model of the family, or put a chat_template.jinja beside its tokenizer",
        )
    prompts = [[message.plain() for message in example.prompt] for example in examples]
    wholes = [[*prompt, example.completion.plain()] for prompt, example in zip(prompts, examples, strict=True)]
    write = partial(tokenizer.apply_chat_template, tokenize=True, return_dict=False)
    try:
        yield from zip(write(prompts, add_generation_prompt=True), write(wholes), strict=True)
    except Exception as error:  # a template is a program that raises what it likes
        raise BadInput(f"the base's chat template cannot write a row: {error}") from error


def _texts(examples: Sequence[TextExample], tokenizer: Any) -> Iterator[tuple[list[int], list[int]]]:
    """The completion is written apart where the two texts would share a token: serving sees the prompt alone."""
    prompts = tokenizer([example.prompt for example in examples])["input_ids"]
    wholes = tokenizer([example.prompt + example.completion for example in examples])["input_ids"]
    for example, prompt, whole in zip(examples, prompts, wholes, strict=True):
        ids = whole
        if ids[: len(prompt)] != prompt:
            ids = prompt + tokenizer(example.completion, add_special_tokens=False)["input_ids"]
        ends = len(ids) == len(prompt) or ids[-1] == tokenizer.eos_token_id
        yield prompt, ids if ends else [*ids, tokenizer.eos_token_id]


def _common(one: list[int], other: list[int]) -> int:
    """How many tokens two lists begin with alike."""
    if other[: len(one)] == one:
        return len(one)
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (left, right) in pairs if left != right), len(other))


def histogram(sides: Sides, max_length: int) -> Figure:
    """How many examples are how long, with the limit, and how many lie beyond it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    lengths = [[*side.lengths, *side.too_long] for side in (sides.train, sides.heldout)]
    longest = max(chain(*lengths), default=0)
    end = min(longest, 2 * max_length)
    shown = [[min(length, end) for length in side] for side in lengths]
    beyond = sides.train.left_out + sides.heldout.left_out
    axes.hist(shown, bins=50, range=(0, end + 1), stacked=True, label=["training", "held out"])
    axes.axvline(max_length, color="black", linestyle="--", label=f"max_length {max_length}: {beyond} beyond it")
    more = f"; up to {longest} in the last bar" if longest > end else ""
    axes.set(title="Length of examples", xlabel=f"tokens{more}", ylabel="examples")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
