"""The `register` verb: parse, call, print."""

from __future__ import annotations

import click

from loradock.cli.command import Command
from loradock.cli.options import json_option, reference_option
from loradock.cli.versions import report
from loradock.registry import recording, refs, versions
from loradock.registry.output import say
from loradock.registry.settings import Settings
from loradock.registry.store import Store


@click.command(cls=Command)
@click.argument("run_id")
@click.option("--name", required=True, help="The adapter to add a version to; made when there is none.")
@reference_option
@json_option
def register(run_id: str, name: str, no_reference: bool, as_json: bool) -> None:
    """Make an immutable version of a run's adapter.

    Example:
      loradock register $RUN --name support-bot

    RUN_ID is an MLflow run that `loradock train` finished. The bytes are hashed again first; the same bytes
    registered twice are one version. Then the PEFT reference is recorded, which replicas compare their own output
    with.
    """
    store, name = Store(Settings()), refs.parse_name(name)
    own = versions.own_shapes(store.adapter_of(run_id)[1].base, store.settings)
    version = versions.register(store, run_id, name, base=own)
    if not no_reference:
        recording.attempt(store, version, say)
    report(store, version, as_json)
