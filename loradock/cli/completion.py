"""The `completion` verb, and what the shells complete: verbs and options by click, refs from the store."""

from __future__ import annotations

import sqlite3
import sys
from typing import Any, ClassVar, Final

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, get_completion_class

from loradock.cli.command import Command
from loradock.registry.errors import BadInput
from loradock.registry.output import say
from loradock.registry.settings import Settings
from loradock.registry.store import names

VARIABLE: Final = "_LORADOCK_COMPLETE"
"""Set by the shell's script while a word is completed."""
SHELLS: Final = ("bash", "zsh", "fish")


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script by which a shell completes verbs and refs, and options.

    Example:
      eval "$(loradock completion bash)"  # in ~/.bashrc
      eval "$(loradock completion zsh)"   # in ~/.zshrc
      loradock completion fish > ~/.config/fish/completions/loradock.fish
    """
    found = get_completion_class(shell)
    assert found is not None, shell  # noqa: S101 - the choice above has only those that click knows
    click.echo(found(ctx.find_root().command, {}, "loradock", VARIABLE).source())
    if sys.stdout.isatty():
        say("`loradock completion --help` says where this belongs")


def complete_ref(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The names, aliases and versions that a word can become; none where the store does not answer at once."""
    try:
        return names.matching(Settings(), incomplete)
    except (OSError, sqlite3.Error, ValueError, LookupError, BadInput):
        return []


def complete_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The names that a word can become."""
    return [ref for ref in complete_ref(ctx, param, incomplete) if not {"@", "/"} & set(ref)]


class Bash(BashComplete):
    """Completion in bash, which takes an `@` for a word, and replaces what stands from it on."""

    name: ClassVar[str] = "bash"
    _before = ""
    """What stands before the `@` of the word to complete."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before, and the one to complete, each as the person wrote it."""
        args, incomplete = super().get_completion_args()
        words: list[str] = []
        for word in [*args, incomplete]:
            if words and (word == "@" or words[-1].endswith("@")):
                words[-1] += word
            else:
                words.append(word)
        name, at, _ = words[-1].partition("@")
        self._before = name if at else ""
        return words[:-1], words[-1]

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """A line that the script reads: what bash shall write in place of what it takes for the word."""
        return f"{item.type},{str(item.value).removeprefix(self._before)}"


add_completion_class(Bash)
