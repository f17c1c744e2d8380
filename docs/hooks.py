"""What mkdocs adds to the pages: the reference, generated from the code, and links that lead out of the site."""

# ruff: noqa: INP001 - mkdocs loads it by its path

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import loradock
from loradock.cli import VERBS, cli
from loradock.cli import settings as settings_verb
from loradock.cli.command import Command
from loradock.registry import errors, secret

ROOT = Path(__file__).resolve().parent.parent
FROM_THE_ROOT = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Documents that stand beside the README, and the pages that they are here."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of code, and those that stand outside docs/."""
    pages = {
        "reference/commands.md": commands(),
        "reference/settings.md": settings(),
        "reference/errors.md": exit_codes(),
        "reference/python.md": python(),
    }
    pages |= {page: (ROOT / name).read_text(encoding="utf-8") for name, page in FROM_THE_ROOT.items()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - mkdocs passes it by name
    """Let a link to a file outside docs/, which the site has not, be the file's name."""
    here = Path(config.docs_dir) / Path(page.file.src_uri).parent

    def outside(found: re.Match[str]) -> str:
        path = (here / found[2]).resolve()
        if not path.is_relative_to(ROOT) or path.is_relative_to(config.docs_dir):
            return found[0]
        name = str(path.relative_to(ROOT))
        if name in FROM_THE_ROOT:
            return f"[{found[1]}](/{FROM_THE_ROOT[name]})"
        return f"{found[1]} (`{name}`)"

    return re.sub(r"(?<!!)\[([^\]]+)\]\((\.\.?/[^)#:]+)\)", outside, markdown)


def commands() -> str:
    """Every verb: its usage, its text, its options."""
    lines = [
        "# Commands\n",
        "Generated from the commands; `loradock VERB --help` prints the same.\n",
        "A version is written `NAME/3`, an alias `NAME@production`; a bare `NAME` means `NAME@production`. Commands",
        "that return data take `--json`. Data goes to stdout, messages to stderr. [Exit codes](errors.md): 0 done,",
        "1 any other error, 2 wrong usage, 3 refused by a check, 4 conflict with another writer, 5 not found,",
        "6 a service is unreachable.\n",
    ]
    root = click.Context(cli, info_name="loradock")
    for room in dict.fromkeys(verb.room for verb in VERBS.values()):
        lines.append(f"## {room}\n")
        for name, verb in VERBS.items():
            if verb.room == room:
                lines += _command(root, name)
    return "\n".join(lines)


def _command(root: click.Context, name: str) -> Iterator[str]:
    command = cli.get_command(root, name)
    assert command is not None, name  # noqa: S101 - the table has only what is there
    with click.Context(command, info_name=name, parent=root) as context:
        yield f"### loradock {name}\n"
        yield f"```text\n{' '.join(['loradock', name, *command.collect_usage_pieces(context)])}\n```\n"
        assert isinstance(command, Command), name  # noqa: S101 - a test holds it
        yield f"{_marked(command.first)}\n"
        yield "\n".join(["```console", *(f"$ {example}" for example in command.examples), "```\n"])
        yield f"{_marked(command.text)}\n"
        options = [param for param in command.get_params(context) if isinstance(param, click.Option)]
        if rows := [row for option in options if (row := option.get_help_record(context))]:
            yield "| Option | Meaning |\n|---|---|"
            yield from (f"| `{_cell(option)}` | {_marked(_cell(text))} |" for option, text in rows)
            yield ""


def settings() -> str:
    """Every variable, its meaning and its default."""
    rows = [row for target in settings_verb.OURS for row in settings_verb.ours(settings_verb.load(target), {})]
    foreign = [settings_verb.foreign(variable, {}) for variable in settings_verb.FOREIGN]
    return "\n".join(
        [
            "# Settings\n",
            "All settings come from environment variables, and all are optional; `loradock settings` prints the values",
            "in force and their sources. An invalid value ends any command with exit code 2 and names the variable.\n",
            "A secret can be read from a file instead: set the variable's name with `_FILE` to the file's path.",
            "Surrounding white space is ignored. A missing, empty or multi-line file is an error; so is setting both.",
            f"These are {', '.join(f'`{name}{secret.SUFFIX}`' for name in secret.VARIABLES)}.\n",
            *_settings_table(rows),
            "\n## Read by MLflow, the Hub's client and vLLM\n",
            *_settings_table(foreign),
        ]
    )


def _settings_table(rows: list[settings_verb.Setting]) -> Iterator[str]:
    yield "| Variable | Meaning | Default |\n|---|---|---|"
    yield from (row.markdown for row in rows)


def exit_codes() -> str:
    """The tree of errors, each with its exit code and its meaning."""
    lines = [
        "# Errors and exit codes\n",
        "An error is one line on stderr with what is wrong and a hint at the next step; `--debug` prints the",
        "traceback. Exit code 0 is success. In Python each error is an exception whose attributes hold the facts.\n",
        "| Error | Exit code | Meaning |\n|---|---|---|",
    ]
    return "\n".join([*lines, *_errors(errors.LoradockError, 0), ""])


def _errors(kind: type[errors.LoradockError], depth: int) -> Iterator[str]:
    text = (
        "Anything else." if kind is errors.LoradockError else inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0]
    )
    yield f"| {'&nbsp;&nbsp;&nbsp;&nbsp;' * depth}`{kind.__name__}` | {kind.exit_code} | {' '.join(text.split())} |"
    for below in kind.__subclasses__():
        yield from _errors(below, depth + 1)


def python() -> str:
    """Every name that `loradock` offers, for mkdocstrings to describe without importing it."""
    lines = [
        "# Python\n",
        "The public API of `import loradock`. Whatever else can be imported may change with any version.",
        "[How to use it](../how-to/python.md).\n",
    ]
    for title, functions in (("Functions", True), ("What they take, give and raise", False)):
        lines.append(f"## {title}\n")
        for name in (name for name in loradock.__all__ if name.islower() == functions):
            home = ".".join(loradock._HOMES[name])  # noqa: SLF001 - the object itself would be imported, with torch
            lines.append(f"::: {home}\n    options: {{heading: {name}, toc_label: {name}}}\n")
    return "\n".join(lines)


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _marked(text: str) -> str:
    """A help text with what Markdown would take for its own, outside of what stands in backticks."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_])", r"\\\1", part.replace("<", "&lt;")) for part in parts[::2]]
    return "`".join(parts)
