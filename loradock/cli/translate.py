"""The `translate` verb: parse, call, print."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click

from loradock.cli.command import Command
from loradock.registry.errors import BadInput, NotFound
from loradock.registry.output import say


@click.command(cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Write the recipe to this path, not to stdout.")
@click.option("--overwrite", is_flag=True, help="Replace the file at --output.")
def translate(file: Path, output: Path | None, overwrite: bool) -> None:
    """Write another trainer's recipe as ours.

    Example:
      loradock translate axolotl.yaml --output recipe.yaml

    FILE is an Axolotl YAML or a LLaMA-Factory SFT YAML. Each key is translated, or reported with the reason why
    not. On stdout, paths are absolute; with --output, they are relative to the recipe's directory.
    """
    from loradock.trainer import dialects

    if overwrite and not output:
        raise BadInput("--overwrite does nothing without --output")
    if not file.is_file():
        raise NotFound(f"there is no recipe {file}", hint="give the path of a YAML recipe")
    if output and output.exists() and not (overwrite and output.is_file()):
        raise BadInput(f"{output} is there already", hint="give another path, or --overwrite to write over a file")
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} cannot be used", problems=[f"{file.name}: it is not UTF-8 text"]) from error
    found = dialects.translate(text, file, directory=output.parent if output else None, absolute=output is None)
    if found is None:
        raise BadInput(
            f"{file} is no recipe of {' or '.join(dialects.Dialect)}",
            hint="a recipe of loradock's own (base, data) needs no translation: `loradock train` takes it",
        )
    for warning in found.warnings:
        say(warning)
    if output is None:
        click.echo(found.recipe_text, nl=False)
        return
    _write(output, found.recipe_text)
    say(f"{output} is {file} as a recipe of loradock's own")


def _write(path: Path, text: str) -> None:
    """All of the text, or nothing."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(text)
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise BadInput(
            f"{path} cannot be written: {error.strerror}", hint="give a directory that can be written"
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
