"""Words for the person at the terminal; data goes to stdout, and is printed by the verbs."""

from __future__ import annotations

import click


def say(text: str) -> None:
    """Write a line to stderr."""
    click.echo(text, err=True)
