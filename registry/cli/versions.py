"""The verbs that make versions, and hash them again: parse, call, print."""

from __future__ import annotations

from pathlib import Path

import click

from registry import base as bases
from registry import history as histories
from registry import promotion, refs, versions
from registry.artifact import verify as verify_files
from registry.cli.output import emit, json_option, say
from registry.cli.shared import base_option, row
from registry.records import Version
from registry.settings import Settings
from registry.store import Store


@click.command()
@click.argument("run_id")
@click.option("--name", required=True, help="The adapter to add a version to; made when there is none.")
@json_option
def register(run_id: str, name: str, as_json: bool) -> None:
    """Make an immutable version of a run's adapter.

    RUN_ID is an MLflow run that `loradock train` finished. Its bytes are hashed again first; the same bytes
    registered twice are one version.
    """
    version = versions.register(Store(Settings()), run_id, refs.parse_name(name))
    _report_version(version, as_json)


@click.command("import")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="The adapter to add a version to; made when there is none.")
@base_option(required=True)
@json_option
def import_(directory: Path, name: str, base: str, as_json: bool) -> None:
    """Make a version of an adapter that was trained elsewhere.

    DIRECTORY holds what PEFT's save_pretrained wrote: adapter_config.json and adapter_model.safetensors. Its tensors
    are held against the base first.
    """
    settings, name = Settings(), refs.parse_name(name)
    local = bases.resolve(base, settings)
    version = versions.import_directory(Store(settings), directory, local, name)
    _report_version(version, as_json)


@click.command()
@click.argument("ref")
@json_option
def verify(ref: str, as_json: bool) -> None:
    """Hash a version's stored bytes again.

    They are held against its digest. Its adapter's history is checked, too: no entry was edited, none is missing.
    """
    store = Store(Settings())
    version = promotion.resolve(store, refs.parse_ref(ref))
    moves = histories.read(store, version.ref.name).moves
    with versions.fetched(store, version) as directory:
        manifest = verify_files(directory, version.facts.digest, what=str(version.ref))
    found = {"version": str(version.ref), "digest": manifest.digest, "files": len(manifest.files), "moves": len(moves)}
    emit(found, as_json)


def _report_version(version: Version, as_json: bool) -> None:
    for finding in version.findings:
        say(f"warning: {version.ref} cannot be served: {finding}")
    emit(row(version), as_json)
