"""The `methods` verb: what a recipe can name, and what each can be told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from loradock.cli.command import Command
from loradock.cli.options import json_option
from loradock.cli.output import emit
from loradock.registry.errors import BadInput, NotFound
from loradock.registry.settings import Settings
from loradock.trainer import catalogue


@click.command(cls=Command)
@click.argument("method", required=False)
@click.option("--base", help="Count the parameters of this base that each method trains with its defaults.")
@json_option
def methods(method: str | None, base: str | None, as_json: bool) -> None:
    """List the methods that a recipe can name, or METHOD's hyper-parameters.

    Example:
      loradock methods dora

    With --base, the parameters that each method trains are counted; of the base only its configuration is read.
    """
    if method is None:
        count = _counter(base) if base else None
        rows = [_row(name) | (count(name) if count else {}) for name in catalogue.ENTRIES]
        columns = ["method", "what_it_is", "vLLM_serves_it", "base_in_4_bits", "learning_rate"]
        emit(rows, as_json, columns=[*columns, *(["trainable", "share"] if base else []), "paper"])
        return
    if base:
        raise BadInput("--base does nothing with a METHOD", hint="without METHOD it counts what each method trains")
    if method not in catalogue.ENTRIES:
        raise NotFound(f"there is no method {method!r}", hint="`loradock methods` lists them")
    emit(_settings(method), as_json, columns=["hyper_parameter", "default", "help"])


def _row(name: str) -> dict[str, Any]:
    from loradock.trainer.catalogue import PROMPTS, QUANTIZED
    from loradock.trainer.recipe import Method

    entry = catalogue.ENTRIES[name]
    able = Method(type=name).peft_type in (*QUANTIZED, *PROMPTS) and not name.startswith(catalogue.FROM_BASE)
    return {
        "method": name,
        "what_it_is": entry.title,
        "vLLM_serves_it": str(entry.served),
        "base_in_4_bits": "always" if entry.quantized else "can be" if able else "no",
        "learning_rate": entry.learning_rate,
        "paper": entry.paper,
    }


def _counter(base: str) -> Callable[[str], dict[str, Any]]:
    from loradock.registry.base import config_of
    from loradock.trainer import count, meta, recipe

    config = meta.config(config_of(base, Settings(), relative_to=Path.cwd()))

    def counted(name: str) -> dict[str, Any]:
        method = {"type": name, **_NEEDED.get(name, {})}
        given = recipe.Recipe.model_validate({"name": "count", "base": base, "data": "none.jsonl", "method": method})
        try:
            counts = count.parameters(given, config)
        except BadInput as error:
            return {"trainable": None, "share": str(error)}
        return {"trainable": counts.trainable, "share": f"{counts.share:.4%}"}

    return counted


def _settings(name: str) -> list[dict[str, Any]]:
    from loradock.trainer.declared import settings_of
    from loradock.trainer.recipe import Method

    method = Method(type=name)
    settings = settings_of(method.peft_type).values() if method.peft_type else ()
    return [
        {
            "hyper_parameter": setting.name,
            "default": method.settings.get(setting.name, setting.default),
            "help": setting.help,
        }
        for setting in settings
    ]


_NEEDED: Final[dict[str, dict[str, Any]]] = {
    # the least that can be said where a method has no default: one token
    "cpt": {"cpt_token_ids": [0], "cpt_mask": [1], "cpt_tokens_type_mask": [1]},
    "trainable_tokens": {"token_indices": [0]},
}
