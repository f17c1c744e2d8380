"""The `import` verb: parse, call, print."""

from __future__ import annotations

from pathlib import Path

import click

from loradock.cli.command import Command
from loradock.cli.options import base_option, json_option, reference_option
from loradock.cli.versions import report
from loradock.registry import base as bases
from loradock.registry import hub, recording, refs, versions
from loradock.registry.errors import NotFound
from loradock.registry.output import say
from loradock.registry.settings import Settings
from loradock.registry.store import Store


@click.command("import", cls=Command)
@click.argument("source", metavar="DIR|HUB-ID")
@click.option("--name", required=True, help="The adapter to add a version to; made when there is none.")
@base_option(required=True)
@click.option(
    "--checkpoint",
    default="",
    metavar="N|best|last",
    help="The checkpoint-N/ of DIR to take; `best` is the one that trainer_state.json names.",
)
@click.option(
    "--convert-pickle",
    is_flag=True,
    help="Read adapter_model.bin where there is no safetensors file; only tensors are read, and no code runs.",
)
@reference_option
@json_option
def import_(
    source: str, name: str, base: str, checkpoint: str, convert_pickle: bool, no_reference: bool, as_json: bool
) -> None:
    """Make a version of an adapter that was trained elsewhere.

    Example:
      loradock import outputs/lora --name support-bot --base Qwen/Qwen2.5-0.5B-Instruct

    DIR is the output of PEFT, Axolotl, LLaMA-Factory, Unsloth or a Trainer; HUB-ID is ORG/NAME or ORG/NAME@REVISION
    on the Hugging Face Hub. Only adapter_config.json and the adapter's weights are taken. The tensors are checked
    against the base first. Then the PEFT reference is recorded.
    """
    settings, name = Settings(), refs.parse_name(name)
    directory, origin = _located(source, convert_pickle)
    local, store = bases.resolve(base, settings), Store(settings)
    version = versions.import_directory(
        store, directory, local, name, origin=origin, checkpoint=checkpoint, convert_pickle=convert_pickle
    )
    if not no_reference:
        recording.attempt(store, version, say, base)
    report(store, version, as_json)


def _located(source: str, pickled: bool) -> tuple[Path, str]:
    """The directory that an adapter is in, and where it came from if that is not this machine."""
    directory = Path(source).expanduser()
    if directory.exists():
        return directory, ""
    if not bases.is_hub_id(source):
        raise NotFound(f"there is no directory {source}", hint="give a directory, or ORG/NAME on the Hub")
    say(f"there is no directory {source}; looking on the Hub")
    repository, _, revision = source.partition("@")
    directory = hub.adapter(repository, revision or None, pickled=pickled)
    return directory, f"{repository}@{directory.name}"
