"""The `combine` verb: parse, call, print."""

from __future__ import annotations

from typing import Any

import click

from loradock.cli.command import Command
from loradock.cli.completion import complete_ref
from loradock.cli.openmp import quieten
from loradock.cli.options import data_option, json_option, limit_option, rank_limit_option, trained_on_option
from loradock.cli.output import emit
from loradock.registry import refs
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


@click.command(cls=Command)
@click.argument("references", metavar="REF REF...", nargs=-1, required=True, shell_complete=complete_ref)
@click.option("--name", required=True, help="The adapter to add the result to; made when there is none.")
@trained_on_option
@click.option("--method", help="cat, svd, linear, ties, dare_ties, ...: docs/merge.md.  [default: cat]")
@click.option("--weights", type=Numbers(), multiple=True, metavar="W,W", help="Each REF's weight.  [default: equal]")
@click.option("--density", type=float, multiple=True, help="The share that a pruning method keeps.  [default: 0.5]")
@click.option("--rank", type=click.IntRange(1), help="The rank of an svd method's result.")
@rank_limit_option
@click.option("--seed", type=int, help="The seed of a dare method, which samples.  [default: 0]")
@click.option("--sweep", is_flag=True, help="Try every --weights with every --density, and keep the best on --data.")
@data_option
@limit_option
@json_option
def combine(references: tuple[str, ...], name: str, as_json: bool, **options: Any) -> None:
    """Combine several versions into one.

    Example:
      loradock combine support-bot/3 tone/2 --name polite-support

    REF is NAME/NUMBER, NAME@ALIAS, or NAME, which means NAME@production. All are plain LoRA on one base. The result is
    a new version; its error against the weighted sum of their changes is printed. `loradock merge` folds one version
    into its base.
    """
    found = tuple(refs.parse_ref(reference) for reference in references)
    if len(found) == 1:
        raise BadInput("one version cannot be combined", hint=f"to fold it into its base: loradock merge {found[0]}")
    if options["limit"] and not options["data"]:
        raise BadInput("--limit does nothing without --data")
    if options["seed"] is not None and not (options["method"] or "").startswith("dare"):
        raise BadInput("--seed does nothing without a dare --method, which samples")
    quieten()
    from loradock.trainer.weights import combination

    task = combination.Task(
        found,
        name,
        base=options["base"],
        method=options["method"],
        weights=options["weights"],
        densities=options["density"],
        rank=options["rank"],
        limit=options["max_lora_rank"],
        seed=options["seed"] or 0,
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
