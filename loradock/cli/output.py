"""What every verb prints its data with, to stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

if TYPE_CHECKING:
    from loradock.registry.lineage import Branch


def emit(data: Any, as_json: bool, *, columns: Sequence[str] = ()) -> None:
    """Print a mapping, or a sequence of mappings, to stdout: as JSON, or as a table of `columns`."""
    if as_json:
        click.echo(json.dumps(data, indent=2, default=str, ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False, show_header=not isinstance(data, Mapping))
    if isinstance(data, Mapping):
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for key, value in _flat(data):
            table.add_row(key, Text(_text(value)))
    else:
        for column in columns:
            table.add_column(column.replace("_", " "), overflow="fold")
        for row in data:
            table.add_row(*(Text(_text(row.get(column))) for column in columns))
    _console().print(table)


def emit_tree(root: Branch) -> None:
    """Print a tree to stdout."""
    tree = Tree(Text(root.text))
    waiting = [(tree, branch) for branch in root.branches]
    while waiting:
        above, branch = waiting.pop(0)
        at = above.add(Text(branch.text))
        waiting += [(at, below) for below in branch.branches]
    _console().print(tree)


def _console() -> Console:
    """Into a pipe or a file, a table is as wide as its content."""
    return Console(width=None if sys.stdout.isatty() else 1000)


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return "  ".join(f"{key}={_text(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value) or "-"
    return str(value)
