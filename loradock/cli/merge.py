"""The `merge` verb: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loradock.cli.completion import complete_ref
from loradock.cli.openmp import quieten
from loradock.cli.options import data_option, json_option, limit_option, trained_on_option
from loradock.cli.output import emit
from loradock.registry import check, refs
from loradock.registry.errors import BadInput
from loradock.registry.output import say
from loradock.registry.settings import Settings


class Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers with commas between: 0.5,0.5."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Them, as a tuple."""
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not numbers with commas between", param, ctx)


@click.command()
@click.argument("references", metavar="REF [REF ...]", nargs=-1, required=True, shell_complete=complete_ref)
@trained_on_option
@click.option("--name", help="The family of the result: for one REF NAME-merged by default; for several it is needed.")
@data_option
@limit_option
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="One REF: keep the model there too.")
@click.option(
    "--into",
    type=click.Choice(["full", "dequantized", "quantized"]),
    help="One REF, trained on a quantised base: into the base's own weights, into those as they were in training, or "
    "into the quantised layers, which needs --insist.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="One REF: the precision of the model.  [default: the base's]",
)
@click.option("--insist", is_flag=True, help="One REF: merge in spite of a refusal.")
@click.option("--method", help="Several REFs: cat, svd, linear, ties, dare_ties, ...: docs/merge.md.  [default: cat]")
@click.option(
    "--weights", type=Numbers(), multiple=True, metavar="W,W", help="Several REFs: the weight of each. [default: equal]"
)
@click.option(
    "--density", type=float, multiple=True, help="Several REFs: the share that a pruning method keeps. [default: 0.5]"
)
@click.option("--rank", type=click.IntRange(1), help="Several REFs: the rank of an svd method's result.")
@click.option(
    "--max-lora-rank",
    type=click.IntRange(1, check.MAX_RANK),
    default=check.MAX_RANK,
    show_default=True,
    help="Several REFs: the rank that the server is started for.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Several REFs: for dare, which draws.")
@click.option(
    "--sweep", is_flag=True, help="Several REFs: try every --weights with every --density, and keep the best on --data."
)
@json_option
def merge(references: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Fold one version into its base, or combine several into one.

    REF is NAME/NUMBER, NAME@ALIAS, or NAME, which means NAME@production. One REF becomes a model of its own, which is
    held against base and adapter before it is registered. Several REFs, all plain LoRA on one base, become a new
    version, whose error against the weighted sum of what they add is told.
    """
    found = tuple(refs.parse_ref(reference) for reference in references)
    one = len(found) == 1
    strange = _given(options, _OF_SEVERAL if one else _OF_ONE)
    if strange:
        told = "with several REFs" if one else "with one REF"
        raise BadInput(f"{', '.join(strange)} {'goes' if len(strange) == 1 else 'go'} {told} only")
    if not one and not options["name"]:
        raise BadInput("a combination needs a --name", hint="a new adapter's, or one that it is to be a version of")
    quieten()
    _fold(found[0], options, as_json) if one else _combine(found, options, as_json)


_OF_ONE = ("out", "into", "dtype", "insist")


_OF_SEVERAL = ("method", "weights", "density", "rank", "sweep")


def _given(options: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    return [f"--{name}" for name in names if options[name]]


def _fold(ref: refs.VersionRef | refs.AliasRef, options: dict[str, Any], as_json: bool) -> None:
    from loradock.trainer.weights import fold

    names = ("base", "out", "into", "dtype", "name", "data", "limit", "insist")
    outcome = fold.merge(fold.Task(ref, **{name: options[name] for name in names}), Settings(), say)
    emit(outcome.model_dump(mode="json"), as_json)


def _combine(found: tuple[refs.VersionRef | refs.AliasRef, ...], options: dict[str, Any], as_json: bool) -> None:
    from loradock.trainer.weights import combination

    task = combination.Task(
        found,
        options["name"],
        base=options["base"],
        method=options["method"],
        weights=options["weights"],
        densities=options["density"],
        rank=options["rank"],
        limit=options["max_lora_rank"],
        seed=options["seed"],
        sweep=options["sweep"],
        data=options["data"],
        rows=options["limit"],
    )
    outcome = combination.combine_versions(task, Settings(), say)
    told = outcome.model_dump(mode="json")
    if as_json:
        emit(told, as_json)
        return
    grid = told.pop("grid")
    emit(told, as_json)
    if grid:
        emit(grid, as_json, columns=("weights", "density", "error", "loss"))
