"""The `convert` verb: parse, call, print."""

from __future__ import annotations

from typing import Any

import click

from loradock.cli.command import Command
from loradock.cli.completion import complete_ref
from loradock.cli.openmp import quieten
from loradock.cli.options import data_option, json_option, limit_option, trained_on_option
from loradock.cli.output import emit
from loradock.registry import check, refs
from loradock.registry.errors import BadInput
from loradock.registry.output import say
from loradock.registry.settings import Settings


@click.command(cls=Command)
@click.argument("ref", shell_complete=complete_ref)
@click.option("--rank", type=click.IntRange(1, check.MAX_RANK), help="The rank of the result.")
@click.option(
    "--energy",
    type=click.FloatRange(0, 1, min_open=True),
    help="The smallest rank that keeps this share of the squared change of weights.  [default: 0.9999, to rank 64]",
)
@click.option("--name", help="The adapter to add the result to.  [default: NAME-lora]")
@click.option(
    "--bound",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="The largest loss of the adapter's effect, measured by the divergence of the next token on probe texts.",
)
@trained_on_option
@data_option
@limit_option
@json_option
def convert(ref: str, as_json: bool, limit: int | None, **options: Any) -> None:
    """Convert an adapter of another method to plain LoRA.

    Example:
      loradock convert support-bot/3 --rank 32

    REF is NAME/NUMBER, NAME@ALIAS, or NAME, which means NAME@production. The change of each weight is truncated to
    its largest singular directions. The error by layer, the divergence on probe texts and, with --data, the
    held-out loss are printed. Methods that change no weight, such as prompt tuning, are refused.
    """
    if options["rank"] and options["energy"]:
        raise BadInput("--rank and --energy exclude each other")
    if limit and not options["data"]:
        raise BadInput("--limit does nothing without --data")
    found = refs.parse_ref(ref)
    quieten()
    from loradock.trainer.weights import convert as conversion

    outcome = conversion.convert(conversion.Task(found, rows=limit, **options), Settings(), say)
    told = outcome.model_dump(mode="json") | {"lost": outcome.lost}
    if as_json:
        emit(told, as_json)
        return
    errors = told.pop("errors")
    emit(told, as_json)
    emit([{"layer": layer, "error": f"{error:.2g}"} for layer, error in errors.items()], as_json, columns=_ERRORS)


_ERRORS = ("layer", "error")
