"""A verb of the command line, whose help opens with an example."""

from __future__ import annotations

import inspect
from typing import Any, Final

import click

_EXAMPLE: Final = "\n\nExample:\n"
_AS_IT_IS: Final = "\b\n"
"""What click leaves the lines of a paragraph alone after."""


class Command(click.Command):
    """A command whose docstring has an example after its first sentence."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        first, example, rest = inspect.cleandoc(self.help or "").partition(_EXAMPLE)
        lines, _, self.text = rest.partition("\n\n")
        self.first = first
        """What it does, in a sentence."""
        self.examples = tuple(line.strip() for line in lines.splitlines())
        """Commands to type."""
        if example:
            self.help = f"{first}\n\n{_AS_IT_IS}Example:\n{lines}\n\n{self.text}".rstrip()
