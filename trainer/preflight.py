"""What a recipe names of its base, held against the base's modules before a weight of it is loaded."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from transformers import PretrainedConfig, get_scheduler

from loradock.registry import patterns
from loradock.registry.errors import BadInput, first_line
from loradock.trainer import catalogue, count, meta, methods, targets, tokens
from loradock.trainer.recipe import Recipe, Training
from loradock.trainer.recipe_file import RecipeFile
from loradock.trainer.tokens import Side, Sides, Tokens

Fault = tuple[tuple[str | int, ...], str]
"""A place in the recipe, or below its `method`, and what is wrong there."""

_SHOWN: Final = 8
_UNTRIED: Final = ("xlora", *count.BY_SIZE)
"""PEFT's types that are not put on shapes alone here: they look at values, or at the files of adapters."""


def check(source: RecipeFile, config: PretrainedConfig) -> None:
    """Raise BadInput with every name that the base does not have, as `file:line: key: what is wrong`.

    PEFT passes over most of them. What it refuses when it puts the method on the base is told too.
    """
    found = [*_schedule(source.recipe.training)]
    names = ""
    if source.recipe.method.peft_type:
        model = meta.base(config)
        of_method = [*_faults(source.recipe, _Names.of(model), config)] or [*_put_on(source, model)]
        found += ((("method", *place), said) for place, said in of_method)
        names = f"this base has {', '.join(targets.names(model))}" if of_method else ""
    if found:
        raise BadInput(
            f"{source.path} cannot be used",
            problems=[source.fault(place, said) for place, said in found],
            hint=names,
        )


def check_rows(source: RecipeFile, side: Side, tokenizer: Any, config: PretrainedConfig) -> list[str]:
    """Words for the rows and tokens on which nothing is trained; raises BadInput where that is so of all."""
    given, found = source.recipe.method.settings, list[str]()
    if wanted := given.get("alora_invocation_tokens"):
        idle = [place for place, each in zip(side.places, side.tokens, strict=True) if not _activated(wanted, each)]
        said = f"no answer follows {wanted}, which are {tokenizer.decode(wanted)!r}: nothing is trained"
        if idle and len(idle) == len(side.tokens):
            ends = side.tokens[0].prompt[-_SHOWN:]
            hint = f"the first prompt ends with {list(ends)}, which are {tokenizer.decode(ends)!r}" if ends else ""
            raise _unusable(source, "alora_invocation_tokens", f"in every row {said}", hint)
        found += [f"in {tokens.counted(idle)} {said}"] if idle else []
    for key in ("token_indices", "trainable_token_indices"):
        listed = given.get(key)
        if not isinstance(listed, list) or not listed or config.get_text_config().tie_word_embeddings:
            continue  # a head that is one with the embeddings learns of every token
        seen = {token for each in side.tokens for token in each.input_ids}
        if unseen := [index for index in listed if index not in seen]:
            said = f"no row has {unseen}, which are {tokenizer.decode(unseen)!r}: nothing is trained of them"
            if key == "token_indices" and len(unseen) == len(listed):
                raise _unusable(source, key, said, "")
            found.append(said)
    return found


def check_lengths(source: RecipeFile, sides: Sides, config: PretrainedConfig) -> None:
    """Raise BadInput where a row is longer than what the base was made to read: it fails there, or learns no more."""
    most = meta.longest(config)
    both = (sides.train, sides.heldout)
    if long := [at for side in both for at, size in zip(side.places, side.lengths, strict=True) if size > most]:
        said = f"{tokens.counted(long)} have more than the {most:,} tokens that this base reads: set it to {most}"
        problem = source.fault(("training", "max_length"), said)
        raise BadInput(f"{source.path} cannot be used", problems=[problem])


def _unusable(source: RecipeFile, key: str, said: str, hint: str) -> BadInput:
    return BadInput(f"{source.path} cannot be used", problems=[source.fault(("method", key), said)], hint=hint)


def _activated(wanted: Sequence[int], example: Tokens) -> bool:
    """Whether a token that carries loss follows the last occurrence, from whose first token on PEFT switches it on."""
    ids, size = example.input_ids, len(wanted)
    last = next((at for at in range(len(ids) - size, -1, -1) if ids[at : at + size] == tuple(wanted)), None)
    return last is not None and any(example.completion_mask[last + 1 :])


def _schedule(training: Training) -> Iterator[Fault]:
    """What the schedule does not take, which the trainer would only find when the model is there."""
    name, given = training.lr_scheduler_type, dict(training.lr_scheduler_kwargs)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        get_scheduler(name, optimizer, num_warmup_steps=0, num_training_steps=10, scheduler_specific_kwargs=given)
    except (TypeError, ValueError, KeyError) as error:
        yield ("training", "lr_scheduler_kwargs"), f"the schedule {name} refuses it: {first_line(error)}"


@dataclass(frozen=True, slots=True)
class _Names:
    """A model's own names."""

    modules: tuple[str, ...]
    carriers: tuple[str, ...]
    """Modules with weights of their own."""
    parameters: tuple[str, ...]

    @classmethod
    def of(cls, model: Any) -> _Names:
        modules = {name: module for name, module in model.named_modules() if name}
        return cls(
            tuple(modules),
            tuple(name for name, module in modules.items() if next(module.parameters(recurse=False), None) is not None),
            tuple(name for name, _ in model.named_parameters(remove_duplicate=False)),
        )


def _faults(recipe: Recipe, names: _Names, config: PretrainedConfig) -> Iterator[Fault]:
    given = recipe.method.settings
    among: Mapping[str, tuple[str, ...]] = {
        "target_modules": names.modules,
        "feedforward_modules": names.modules,
        "exclude_modules": names.carriers,
        "modules_to_save": names.modules,
        "target_parameters": names.parameters,
        "trainable_token_indices": names.modules,
    }
    for key, there in among.items():
        yield from _unknown(key, given.get(key), there)
    yield from _layers(given, names)
    vocabulary = int(config.get_text_config().vocab_size)
    for key in ("token_indices", "trainable_token_indices", "alora_invocation_tokens"):
        listed = given.get(key) or []
        for place, indices in listed.items() if isinstance(listed, dict) else [(None, listed)]:
            for index in indices if isinstance(indices, list) else []:
                if not isinstance(index, int) or not 0 <= index < vocabulary:
                    where = (key,) if place is None else (key, str(place))
                    yield where, f"{index} is no token: this base has {vocabulary:,}, from 0"


def _unknown(key: str, given: Any, there: tuple[str, ...]) -> Iterator[Fault]:
    """Names, or expressions, that are none of those."""
    if isinstance(given, str) and key != "modules_to_save":
        if given == "all-linear" or given in targets.GROUPS:
            return
        try:
            matched = any(re.fullmatch(given, name) or name.endswith(given) for name in there)
        except re.error as error:
            yield (key,), f"{given!r} is no regular expression: {error}"
            return
        if not matched:
            yield (key,), f"{given!r} matches nothing in this base{_near(given, there)}"
        return
    ends = set(_ends(there))
    for place, name in enumerate([given] if isinstance(given, str) else given or ()):
        if isinstance(name, str) and name not in ends:
            at = (key, name) if isinstance(given, dict) else (key,) if isinstance(given, str) else (key, place)
            what = "weight" if key == "target_parameters" else "module"
            only = f"no {what} of this base ends so" if key != "exclude_modules" else "no module with weights ends so"
            yield at, f"{name!r}: {only}{_near(name, there)}"


def _layers(given: Mapping[str, Any], names: _Names) -> Iterator[Fault]:
    wanted, named = given.get("layers_to_transform"), given.get("layers_pattern")
    if wanted is None:
        return
    lists = [named] if isinstance(named, str) else named or [r"[^.]*"]
    found: set[int] = set()
    for place, name in enumerate(lists):
        # PEFT's own expressions (peft/tuners/tuners_utils.py, `check_target_module_exists`)
        layers = {
            int(match[1]) for module in names.carriers if (match := re.match(rf"(?:^|.*?\.){name}\.(\d+)\.", module))
        }
        if not layers:
            numbered = {match[1] for module in names.modules if (match := re.search(r"([^.]+)\.\d+$", module))}
            at = ("layers_pattern",) if isinstance(named, str) else ("layers_pattern", place)
            yield at, f"{name!r}: this base has no numbered modules of that name{_near(name, tuple(numbered))}"
        found |= layers
    for place, index in enumerate([wanted] if isinstance(wanted, int) else wanted):
        if found and index not in found:
            at = ("layers_to_transform",) if isinstance(wanted, int) else ("layers_to_transform", place)
            yield at, f"{index}: this base has layers {min(found)} to {max(found)}"


def _put_on(source: RecipeFile, model: Any) -> Iterator[Fault]:
    """What PEFT refuses, what would be lost, and the settings by module that mean none that carries the method."""
    recipe, method = source.recipe, source.recipe.method
    ends = [id(model.get_input_embeddings()), id(model.get_output_embeddings())]
    embeddings = [name for name, module in model.named_modules() if id(module) in ends]
    try:
        config = methods.configure(method, model, directory=source.directory, steps=1)
        if config is None or method.peft_type in _UNTRIED:
            return
        wrapped = meta.wrapped(model, config)
    except BadInput as error:
        if "meta device" not in str(error) and isinstance(error.__cause__, ValueError | TypeError | None):
            # others may come of missing values
            key, _, said = str(error).removeprefix("method.").partition(": ")
            yield ((key,), said) if key in method.settings else ((), str(error))
        return
    except (RuntimeError, ArithmeticError):  # of missing values, too
        return
    carriers = methods.carriers_of(wrapped)
    yield from _trained_twice(wrapped)
    start = str(method.settings.get("init_lora_weights", ""))
    tied = [name for name in embeddings if name in carriers and model.config.get_text_config().tie_word_embeddings]
    if tied and start.startswith(catalogue.FROM_BASE):
        yield (), f"{start} takes a part out of {tied[0]}, which is one with another weight of this base: leave it out"
    if recipe.training.packing and method.settings.get("alora_invocation_tokens"):
        yield (), "an activated LoRA is switched on by the last of packed rows alone: set training.packing to false"
    elif recipe.training.packing and (method.peft_type in catalogue.PROMPTS or methods.wants_logits(wrapped)):
        yield (), f"{method.type} on this base is not trained on packed rows: set training.packing to false"
    for key, rule in patterns.RULES.get(config.peft_type.value, {}).items():
        given = method.settings.get(key) or {}
        yield from (((key, name), said) for name, said in _by_module(given, carriers, rule))


def _trained_twice(wrapped: Any) -> Iterator[Fault]:
    """Embeddings, or a head, of which single tokens are to be trained and all of them: PEFT's model cannot run."""
    for name, module in wrapped.named_modules():
        inner = module.token_adapter.get_base_layer() if isinstance(module, TrainableTokensWrapper) else None
        if isinstance(inner, ModulesToSaveWrapper):
            where = name.removeprefix("base_model.model.")
            yield ("trainable_token_indices",), f"modules_to_save trains all of {where}: leave out one of the two"


def _by_module(given: Mapping[str, Any], carriers: tuple[str, ...], rule: patterns.Rule) -> Iterator[tuple[str, str]]:
    found = patterns.by_module(given, carriers, rule)
    taken = {keys[0] for keys in found.values()}
    for key in given:
        if key in taken:
            continue
        before = {keys[0] for keys in found.values() if key in keys}
        if before:
            yield key, f"changes nothing: {' and '.join(sorted(before))} before it takes every module that it means"
        else:
            yield key, f"no module that carries the method ends so{_near(key, carriers)}"


def _near(name: str, there: Iterable[str]) -> str:
    depth = name.count(".") + 1
    alike = {".".join(full.split(".")[-depth:]) for full in there}
    near = difflib.get_close_matches(name, alike, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _ends(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        parts = name.split(".")
        yield from (".".join(parts[start:]) for start in range(len(parts)))
