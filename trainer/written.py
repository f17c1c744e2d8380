"""An example as a base's tokenizer and chat template write it, and what they put there that the row does not say."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, get_args

from loradock.registry.errors import BadInput, first_line
from loradock.trainer.rows import ChatExample, Example, TextExample

_BATCH: Final = 1000
_SHOWN: Final = 20
_OTHER: Final = "\ue000"  # a private character, with which no answer begins

Kind = Literal["not_a_prefix", "added", "rewritten", "garbled", "begins_twice", "controls", "endless"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Oddity:
    """How examples are written otherwise than their rows say."""

    kind: Kind
    words: str


_NOT_A_PREFIX: Final = Oddity("not_a_prefix", "the chat template writes the prompt otherwise than serving does")
_GARBLED: Final = Oddity("garbled", "the tokenizer does not give the row's own text back: is it the base's?")
_REWRITTEN: Final = Oddity("rewritten", "the chat template writes the answer otherwise than the row has it")


@dataclass(frozen=True, slots=True)
class Written:
    """One example as token ids."""

    prompt: Sequence[int] = ()
    """As serving writes it."""
    ids: Sequence[int] = ()
    """The prompt with the completion."""
    begins: int = 0
    """So many tokens both begin with."""
    answer: int = 0
    """Where the completion begins: behind these, and behind what the template puts before it."""
    odd: tuple[Oddity, ...] = ()


Placed = tuple[str, Example]
"""An example, and the place of its row."""


def write(examples: Sequence[Placed], tokenizer: Any, stops: Collection[int]) -> list[Written]:
    """Each example as serving will see it; `stops` are the tokens that end a generation, where they are known.

    Raises BadInput with the place of every row that the base's chat template refuses.
    """
    refused: dict[str, None] = {}
    chats = _batches(examples, ChatExample, lambda batch: _chats(batch, tokenizer, stops, refused))
    texts = _batches(examples, TextExample, lambda batch: _texts(batch, tokenizer))
    found = [next(chats if isinstance(example, ChatExample) else texts) for _, example in examples]
    if refused:
        more = [f"and {len(refused) - _SHOWN:,} more"] if len(refused) > _SHOWN else []
        raise BadInput(
            "the base's chat template refuses rows",
            problems=[*list(refused)[:_SHOWN], *more],
            hint="fix the rows, or add a chat_template.jinja that accepts them beside the base's tokenizer",
        )
    return found


def _batches(
    examples: Sequence[Placed], kind: type[Example], write_: Callable[[Sequence[Any]], Iterator[Written]]
) -> Iterator[Written]:
    mine = [placed for placed in examples if isinstance(placed[1], kind)]
    for start in range(0, len(mine), _BATCH):
        yield from write_(mine[start : start + _BATCH])


def _chats(
    batch: Sequence[tuple[str, ChatExample]], tokenizer: Any, stops: Collection[int], refused: dict[str, None]
) -> Iterator[Written]:
    """Each of a batch; one that the template refuses is empty, with its place and fault in `refused`."""
    if not tokenizer.chat_template:
        raise BadInput(
            "the base's tokenizer has no chat template, so chat rows cannot be written for it",
            hint="use the instruct model of the family, or put a chat_template.jinja beside its tokenizer",
        )
    prompts = [[message.plain() for message in example.prompt] for _, example in batch]
    wholes = [[*prompt, example.completion.plain()] for prompt, (_, example) in zip(prompts, batch, strict=True)]
    render = partial(tokenizer.apply_chat_template, tokenize=True, return_dict=False)
    asked = _rendered(partial(render, add_generation_prompt=True), prompts)
    for (place, example), prompt, whole in zip(batch, asked, _rendered(render, wholes), strict=True):
        if isinstance(error := prompt if isinstance(prompt, Exception) else whole, Exception):
            refused[": ".join(filter(None, (place, first_line(error))))] = None
            yield Written()
        else:
            yield _chat(example, prompt, whole, tokenizer, stops)


def _rendered(render: Callable[[list[Any]], Any], conversations: list[Any]) -> list[Any]:
    """The token ids of each conversation, or what the template raised: it is a program that raises what it likes."""
    try:
        return list(render(conversations))
    except Exception as error:  # noqa: BLE001 # see above
        return [error] if len(conversations) == 1 else [_rendered(render, [each])[0] for each in conversations]


def _chat(example: ChatExample, prompt: list[int], whole: list[int], tokenizer: Any, stops: Collection[int]) -> Written:
    begins = _common(prompt, whole)
    odd = [_NOT_A_PREFIX] if begins < len(prompt) else []
    answer, said = begins, example.completion.content
    if not _says(whole[begins:], said, tokenizer, at_once=True):
        answer = _answer(example, begins, whole, tokenizer)
        if not _says(tokenizer(said, add_special_tokens=False)["input_ids"], said, tokenizer):
            odd.append(_GARBLED)
        elif not _says(whole[answer:], said, tokenizer):
            odd.append(_REWRITTEN)
    if answer > begins:
        added = tokenizer.decode(whole[begins:answer])
        odd.append(Oddity("added", f"the chat template puts {added!r} before the answer: excluded from the loss"))
    turns = [*(message.content for message in example.prompt), said]
    if marks := [mark for mark in tokenizer.all_special_tokens if any(mark in turn for turn in turns)]:
        odd.append(Oddity("controls", f"the row's own text holds {', '.join(marks)}: read as the tokenizer's control"))
    if stops and not any(token in stops for token in whole[answer:]):
        ends = " or ".join(repr(tokenizer.decode([token])) for token in sorted(stops))
        odd.append(Oddity("endless", f"the answer does not end with {ends}, where generation stops: it will run on"))
    return Written(prompt, whole, begins, answer, tuple(odd))


def _says(ids: Sequence[int], text: str, tokenizer: Any, *, at_once: bool = False) -> bool:
    """Whether tokens read as a text, white space around it left out; `at_once` allows for nothing before it."""
    found = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return found.strip().startswith(text.strip()) if at_once else text.strip() in found


def _answer(example: ChatExample, begins: int, whole: list[int], tokenizer: Any) -> int:
    """Where the row's own words begin, found by writing another answer in their place."""
    turns = [*(message.plain() for message in example.prompt), {"role": "assistant", "content": _OTHER}]
    try:
        other = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    except Exception:  # noqa: BLE001 # a template that looks into answers
        return begins
    answer = _common(other, whole)
    added = tokenizer.decode(whole[begins:answer]).strip()
    return answer if added and not example.completion.content.strip().startswith(added) else begins


def _texts(batch: Sequence[tuple[str, TextExample]], tokenizer: Any) -> Iterator[Written]:
    """The completion is written apart where the two texts would share a token: serving sees the prompt alone.

    What the tokenizer puts before every text is left out where the row has it, as chat templates do.
    """
    start = _start(tokenizer)
    begins = Oddity(
        "begins_twice", f"the text begins with {tokenizer.decode(start)!r}, as the tokenizer does: kept once"
    )
    prompts = tokenizer([example.prompt for _, example in batch])["input_ids"]
    wholes = tokenizer([example.prompt + example.completion for _, example in batch])["input_ids"]
    for (_, example), asked, whole in zip(batch, prompts, wholes, strict=True):
        prompt, ids = (each[len(start) :] if each[: 2 * len(start)] == start * 2 else each for each in (asked, whole))
        odd = [begins] if len(ids) < len(whole) else []
        if ids[: len(prompt)] != prompt:
            ids = prompt + tokenizer(example.completion, add_special_tokens=False)["input_ids"]
        text = example.prompt + example.completion
        if not (_says(ids[len(prompt) :], example.completion, tokenizer) or _says(ids, text, tokenizer)):
            odd.append(_GARBLED)
        ends = len(ids) == len(prompt) or ids[-1] == tokenizer.eos_token_id
        yield Written(prompt, ids if ends else [*ids, tokenizer.eos_token_id], len(prompt), len(prompt), tuple(odd))


def _start(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before every text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids: list[int] = tokenizer("a")["input_ids"]
    return next((ids[:index] for index in range(len(ids)) if ids[index : index + len(bare)] == bare), [])


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two lists begin with alike."""
    if other[: len(one)] == one:
        return len(one)
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (left, right) in pairs if left != right), len(other))
