"""Words that the field does not use, kept out of what users read: the README, `--help`, error texts, metrics."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click

from loradock.cli import VERBS, cli

ROOT = Path(__file__).resolve().parent.parent

RETIRED = {
    r"held[ _]back": "quarantined",
    r"takes? no traffic": "quarantined",
    r"past loradock": "out of band",
    r"(what )?PEFT says": "the PEFT reference",
    r"cannot be meant": "invalid",
    r"without effect": "no-op",
    r"kept places?": "CPU cache slot",
    r"reckon\w*": "compute",
    r"is heard on": "is run on",
    r"asks? who you are": "requires a login",
    r"whoever": "anyone who",
}
"""Each with what stands in its place. A word that is gone from all of them is added here."""


def retired(text: str) -> list[str]:
    return [found[0] for pattern in RETIRED for found in re.finditer(rf"\b{pattern}\b", text, re.IGNORECASE)]


def helps() -> Iterator[tuple[str, str]]:
    with click.Context(cli) as context:
        for name in VERBS:
            command = cli.get_command(context, name)
            assert command is not None
            yield name, command.get_help(click.Context(command, info_name=name, parent=context))


def texts(path: Path) -> Iterator[str]:
    """Every string of a module but its docstrings, those below attributes too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node.value


def test_the_readme_has_no_retired_word() -> None:
    assert retired((ROOT / "README.md").read_text(encoding="utf-8")) == []


def test_no_help_has_a_retired_word() -> None:
    found = [(name, retired(" ".join(text.split()))) for name, text in helps()]
    assert [(name, words) for name, words in found if words] == []


def test_no_error_log_or_metric_has_a_retired_word() -> None:
    modules = [path for room in ("registry", "trainer", "serving") for path in (ROOT / room).rglob("*.py")]
    assert len(modules) > 150
    found = [(path.name, words) for path in modules for text in texts(path) if (words := retired(text))]
    assert found == []


def test_no_alert_or_dashboard_has_a_retired_word() -> None:
    for path in (ROOT / "dashboards").iterdir():
        assert retired(path.read_text(encoding="utf-8")) == [], path
