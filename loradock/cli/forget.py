"""The `forget` verb: parse, call, print."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

from loradock.cli.command import Command
from loradock.cli.completion import complete_name
from loradock.cli.options import json_option
from loradock.cli.output import emit
from loradock.cli.rows import moment
from loradock.registry import refs
from loradock.registry.output import say
from loradock.registry.settings import Settings
from loradock.registry.store import Store


@click.command(cls=Command)
@click.argument("name", required=False, shell_complete=complete_name)
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    default=30,
    show_default=True,
    metavar="DAYS",
    help="Keep the texts of runs that started within DAYS.",
)
@click.option("--yes", is_flag=True, help="Delete. The default is a dry run.")
@json_option
def forget(name: str | None, older_than: float, yes: bool, as_json: bool) -> None:
    """Delete the prompts and answers that evaluations and trainings keep, by age.

    Example:
      loradock forget support-bot --older-than 90

    NAME is one adapter: its evaluations, and the trainings of its versions. Without it, all runs of this registry
    are looked at. Figures, digests and evidence stay valid. The default is a dry run.
    """
    store = Store(Settings())
    runs = None
    if name:
        family = store.family(refs.parse_name(name)).name
        runs = store.evaluations_of(family) | {version.facts.run_id for version in store.versions(family)}
    found = tuple(store.texts(datetime.now(UTC) - timedelta(days=older_than), runs=runs))
    for text in found if yes else ():
        store.delete_text(text)
    rows = [
        {"run": text.run_id, "title": text.title, "file": text.file, "at": moment(text.at), "bytes": text.size}
        for text in found
    ]
    size = f"{len(found)} texts, {sum(text.size for text in found):,} bytes"
    say(f"deleted: {size}" if yes else f"nothing was deleted; with --yes {size} would be")
    emit(rows, as_json, columns=("run", "title", "file", "at", "bytes"))
