"""Examples as tokens: written as serving will see them, with a mask of what carries loss, and none cut."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from loradock.registry.errors import BadInput
from loradock.trainer import written
from loradock.trainer.rows import Example, Row
from loradock.trainer.written import KINDS, Kind, Oddity, Placed, Written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN: Final = 20
_PLACES: Final = 5


@dataclass(frozen=True, slots=True)
class Tokens:
    """One example as token ids, and beside each whether it carries loss (1) or not (0)."""

    input_ids: tuple[int, ...]
    completion_mask: tuple[int, ...]
    prompt: tuple[int, ...] = ()
    """What serving gives the model to answer; the example can go on otherwise."""

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
    odd: Mapping[Oddity, tuple[str, ...]] = field(default_factory=dict)
    """What is written otherwise than rows say, and the place of each example's row."""
    places: tuple[str, ...] = field(default=(), compare=False)
    """Of each example's row."""

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

    def count(self, kind: Kind) -> int:
        """How many examples are odd in one way."""
        return sum(len(places) for oddity, places in self.odd.items() if oddity.kind == kind)

    def statistics(self) -> dict[str, str]:
        """Counts and lengths, as text."""
        return {
            "examples": str(len(self.examples)),
            "left_out": str(self.left_out),
            **{kind: str(self.count(kind)) for kind in KINDS},
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


def oddities(*sides: Side) -> Iterator[str]:
    """What examples say that their rows do not, with how many and the first rows."""
    for oddity in dict.fromkeys(chain(*(side.odd for side in sides))):
        yield f"{counted([place for side in sides for place in side.odd.get(oddity, ())])}: {oddity.words}"


def counted(examples: Sequence[str]) -> str:
    """How many examples, and the first of their rows' places."""
    places = [place for place in dict.fromkeys(examples) if place]
    shown = ", ".join(places[:_PLACES]) + (" ..." if len(places) > _PLACES else "")
    return f"{len(examples):,} example{'s' if len(examples) > 1 else ''}{f' ({shown})' if shown else ''}"


def fitting(
    train: Sequence[Row],
    heldout: Sequence[Row],
    tokenizer: Any,
    max_length: int,
    *,
    completion_only_loss: bool = True,
    stops: Collection[int] = (),
) -> Sides:
    """The examples that are at most `max_length` tokens long, as tokens; a side without rows stays empty.

    Without `completion_only_loss` every token carries loss that the template did not add to an answer, and a
    conversation is one example: its last turn with all before it. `stops` are the tokens that end a generation.
    Raises BadInput when none of a side's examples fits, or when the tokenizer cannot write one.
    """
    whole = not completion_only_loss
    pairs = [
        [(row.place, example) for row in rows for example in (row.examples()[-1:] if whole else row.examples())]
        for rows in (train, heldout)
    ]
    found = iter(written.write([*chain(*pairs)], tokenizer, stops))
    return Sides(
        *(
            _side(examples, [next(found) for _ in examples], max_length, what=what, whole=whole)
            for examples, what in zip(pairs, ("train on", "hold out"), strict=True)
        )
    )


def _side(examples: Sequence[Placed], found: Sequence[Written], max_length: int, *, what: str, whole: bool) -> Side:
    kept: list[tuple[Example, Tokens, str]] = []
    too_long: list[int] = []
    empty: list[str] = []
    odd: dict[Oddity, list[str]] = {}
    for (place, example), each in zip(examples, found, strict=True):
        for oddity in each.odd:
            odd.setdefault(oddity, []).append(place)
        if each.answer == len(each.ids):
            empty.append(": ".join(filter(None, (place, f"nothing is left of {example.plain()['completion']!r:.80}"))))
        elif len(each.ids) > max_length:
            too_long.append(len(each.ids))
        else:
            ids = tuple(each.ids)
            mask = (int(whole),) * each.begins + (0,) * (each.answer - each.begins) + (1,) * (len(ids) - each.answer)
            prompt = ids[: each.begins] if each.begins == len(each.prompt) else tuple(each.prompt)
            kept.append((example, Tokens(ids, mask, prompt), place))
    if empty:
        more = [f"and {len(empty) - _SHOWN:,} more"] if len(empty) > _SHOWN else []
        raise BadInput("the base's tokenizer leaves completions empty", problems=empty[:_SHOWN] + more)
    if examples and not kept:
        raise BadInput(
            f"none of the {len(examples)} examples to {what} fits into {max_length} tokens",
            hint=f"raise training.max_length: the shortest has {min(too_long)} tokens",
        )
    return Side(
        tuple(example for example, *_ in kept),
        tuple(tokens for _, tokens, _ in kept),
        tuple(too_long),
        {oddity: tuple(places) for oddity, places in odd.items()},
        tuple(place for *_, place in kept),
    )


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
