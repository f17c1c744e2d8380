"""The `train` verb: parse, call, print."""

from __future__ import annotations

import math
import os
from dataclasses import asdict
from pathlib import Path

import click

from registry.cli.output import emit, json_option, say
from registry.settings import Settings
from trainer import data
from trainer import recipe as recipes


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@json_option
def train(recipe: Path, as_json: bool) -> None:
    """Train an adapter from a recipe and log the run to MLflow.

    RECIPE is a YAML file. It and its data are checked whole before anything is loaded. The run that comes of it
    holds the adapter; `loradock register RUN --name NAME` makes a version of it.
    """
    source = recipes.load(recipe)
    rows = data.load(source.data_path)
    rows.split(source.recipe.data.heldout)
    say(f"{len(rows.rows)} rows in {rows.name}; loading")
    # OpenMP reads this when torch loads it. By default its threads spin while they wait for each other, and beside
    # another busy process, a serving engine for one, that takes five times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from trainer import run

    outcome = run.train(source, rows, Settings(), say)
    emit({key: _rounded(value) for key, value in asdict(outcome).items()}, as_json)


def _rounded(value: str | float) -> str | float | None:
    """Four decimals; None for a loss that was never reported, since JSON has no NaN."""
    if not isinstance(value, float):
        return value
    return round(value, 4) if math.isfinite(value) else None
