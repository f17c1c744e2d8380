"""The `merge` verb: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loradock.cli.command import Command
from loradock.cli.completion import complete_ref
from loradock.cli.openmp import quieten
from loradock.cli.options import data_option, force_option, json_option, limit_option, trained_on_option
from loradock.cli.output import emit
from loradock.registry import refs
from loradock.registry.errors import BadInput
from loradock.registry.output import say
from loradock.registry.settings import Settings


@click.command(cls=Command)
@click.argument("ref", shell_complete=complete_ref)
@trained_on_option
@click.option("--name", help="The adapter whose version the model becomes.  [default: NAME-merged]")
@data_option
@limit_option
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Write the model to this directory too.")
@click.option(
    "--into",
    type=click.Choice(["full", "dequantized", "quantized"]),
    help="For a version trained on a quantised base: merge into the base's original weights, into the dequantised "
    "weights of the training, or into the quantised layers, which needs --force.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="The precision of the model.  [default: the base's]",
)
@force_option("Merge what a check or the policy refuses.", kept="the model's run")
@json_option
def merge(ref: str, as_json: bool, **options: Any) -> None:
    """Fold one version into its base.

    Example:
      loradock merge support-bot/3 --out merged/

    REF is NAME/NUMBER, NAME@ALIAS, or NAME, which means NAME@production. The result is a model of its own, which is
    compared with base and adapter before it is registered. `loradock combine` makes one adapter of several.
    """
    if options["limit"] and not options["data"]:
        raise BadInput("--limit does nothing without --data")
    found = refs.parse_ref(ref)
    quieten()
    from loradock.trainer.weights import fold

    outcome = fold.merge(fold.Task(found, **options), Settings(), say)
    emit(outcome.model_dump(mode="json"), as_json)
