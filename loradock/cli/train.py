"""The `train` verb: parse, call, print."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, replace
from pathlib import Path

import click

from loradock.cli.command import Command
from loradock.cli.openmp import quieten
from loradock.cli.options import json_option, no_samples_option
from loradock.cli.output import emit
from loradock.registry.output import say
from loradock.registry.settings import Settings
from loradock.trainer import data, dialects


@click.command(cls=Command)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--resume", is_flag=True, help="Continue a run of this recipe that was interrupted on this machine.")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    help="Total processes across all machines; the global batch size is unchanged.",
)
@click.option(
    "--accelerate-config",
    type=click.Path(path_type=Path),
    help="A file of `accelerate config` for --processes: FSDP or DeepSpeed over GPUs.",
)
@click.option(
    "--num-machines", type=click.IntRange(min=1), help="Number of machines that start this command.  [default: 1]"
)
@click.option("--machine-rank", type=click.IntRange(min=0), help="This machine's number, from 0.")
@click.option("--main-process-ip", metavar="HOST", help="Address of machine 0, as the others reach it.")
@click.option(
    "--main-process-port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Port of machine 0.  [default: 29500]",
)
@no_samples_option
@json_option
def train(
    recipe: Path,
    resume: bool,
    processes: int | None,
    accelerate_config: Path | None,
    no_samples: bool,
    as_json: bool,
    **given: int | str | None,
) -> None:
    """Train an adapter from a recipe and log the run to MLflow.

    Example:
      loradock train recipe.yaml

    RECIPE is a YAML file: ours, Axolotl's or LLaMA-Factory's. The recipe and its data are checked before the base
    is loaded. The run holds the adapter; `loradock register RUN --name NAME` makes a version of it.
    """
    source = dialects.load(recipe, say)
    if no_samples:
        source = replace(source, recipe=source.recipe.model_copy(update={"samples": 0}))
    rows = data.load(source.recipe.data, source.directory)
    rows.split(source.recipe.data.heldout)
    for option, value in {"accelerate_config": accelerate_config, **given}.items():
        if value is not None and not processes:
            raise click.UsageError(f"--{option.replace('_', '-')} needs --processes")
    quieten()
    if processes:
        from loradock.trainer import launch
        from loradock.trainer.processes import Crew

        Crew(0, processes).batch(source.recipe.training)
        if accelerate_config:
            launch.check(accelerate_config, processes)
        machines = launch.machines(given, processes, accelerate_config)
        if machines.count > 1:
            say(f"machine {machines.rank} of {machines.count}: all come together at {machines.host}:{machines.port}")
        given_flags = {"--resume": resume, "--no-samples": no_samples, "--json": as_json}
        flags = [flag for flag, is_given in given_flags.items() if is_given]
        launch.run(["train", str(recipe), *flags], processes, machines, accelerate_config)
        return
    if os.environ.get("RANK", "0") == "0":  # the main process, or the only one
        if rows.unread:
            say(f"columns that are not read: {', '.join(rows.unread)}")
        say(f"{len(rows.rows)} rows in {rows.name}; loading")
    from loradock.trainer import run

    outcome = run.train(source, rows, Settings(), say, resume=resume)
    if outcome is not None:
        emit({key: _rounded(value) for key, value in asdict(outcome).items()}, as_json)


def _rounded(value: str | float) -> str | float | None:
    """Four decimals; None for a loss that was never reported, since JSON has no NaN."""
    if not isinstance(value, float):
        return value
    return round(value, 4) if math.isfinite(value) else None
