"""The `check` verb: parse, call, print."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from registry import base as bases
from registry import check as checks
from registry import promotion, refs, versions
from registry.artifact import verify as verify_files
from registry.cli.output import emit, json_option
from registry.cli.shared import base_option
from registry.errors import NotServable
from registry.settings import Settings
from registry.store import Store


@click.command()
@click.argument("target")
@base_option(required=False)
@click.option(
    "--max-lora-rank",
    type=click.IntRange(1, checks.MAX_RANK),
    default=checks.MAX_RANK,
    show_default=True,
    help="The rank that the server is started for.",
)
@json_option
def check(target: str, base: str | None, max_lora_rank: int, as_json: bool) -> None:
    """Say whether vLLM can serve an adapter, and why not.

    TARGET is a directory, or a version. Without --base its shapes are held against no base. Nothing is loaded. It exits
    with 3 when the adapter cannot be served.
    """
    settings = Settings()
    config = bases.resolve(base, settings).config if base else None
    with contextlib.ExitStack() as stack:
        directory = Path(target)
        if not directory.is_dir():
            store = Store(settings)
            version = promotion.resolve(store, refs.parse_ref(target))
            directory = stack.enter_context(versions.fetched(store, version))
            verify_files(directory, version.facts.digest, what=str(version.ref))
        found = checks.findings(directory, base_config=config, max_rank=max_lora_rank)
    emit({"target": target, "servable": not found, "findings": found}, as_json)
    if found:
        raise NotServable(target, found)
