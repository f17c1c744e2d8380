"""One grammar for every verb: the same thing has the same option, and an option that would do nothing is refused."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from loradock.cli import VERBS, cli
from loradock.registry.errors import BadInput

RETIRED = {"--to", "--url", "--endpoint", "--insist", "--restart", "--page", "--yes"}
"""What an alias, a replica, an override and a file to write over were called."""
STANDS = {("rollback", "--to"), ("gc", "--yes"), ("forget", "--yes")}
"""A version's number to go back to; and the end of a dry run, for what deletes."""


def options() -> Iterator[tuple[str, click.Option]]:
    with click.Context(cli) as context:
        for name in VERBS:
            command = cli.get_command(context, name)
            assert command is not None
            yield from ((name, param) for param in command.params if isinstance(param, click.Option))


def test_no_verb_has_a_retired_option() -> None:
    found = {(name, flag) for name, option in options() for flag in option.opts if flag in RETIRED}
    assert found == STANDS


def test_an_override_has_a_reason() -> None:
    flags = {(name, flag) for name, option in options() for flag in option.opts}
    forced = {name for name, flag in flags if flag == "--force"}
    assert forced == {"promote", "merge", "publish"}
    assert {(name, "--reason") for name in forced} <= flags


def test_an_option_that_verbs_share_says_the_same_of_itself() -> None:
    texts: dict[str, set[str]] = {}
    for _, option in options():
        for flag in option.opts:
            if flag in ("--alias", "--json", "--limit", "--max-lora-rank", "--no-samples", "--no-reference"):
                texts.setdefault(flag, set()).add(str(option.help))
    assert {flag: len(found) for flag, found in texts.items() if len(found) > 1} == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("history bot --reason x", "--reason does nothing without --accept"),
        ("policy bot --reason x", "--reason does nothing without --set"),
        ("methods lora --base b", "--base does nothing with a METHOD"),
        ("up --no-serve --base b", "do nothing with --no-serve"),
        ("translate axolotl.yaml --overwrite", "--overwrite does nothing without --output"),
        ("gc --api-key k", "--api-key does nothing without --replica"),
        ("evaluate bot/1 --data rows.jsonl --api-key k", "--api-key does nothing without --replica"),
        ("evaluate bot/1 --data rows.jsonl --max-new-tokens 8", "--max-new-tokens does nothing with --metric loss"),
        ("list --page-size 3", "need a NAME"),
        ("merge bot/1 --limit 3", "--limit does nothing without --data"),
        ("convert bot/1 --limit 3", "--limit does nothing without --data"),
        ("combine bot/1 bot/2 --name x --seed 1", "--seed does nothing without a dare --method"),
        ("merge bot/1 --reason x", "--reason does nothing without --force"),
        ("merge bot/1 --force", "--force needs a --reason"),
        ("publish bot/1 --repo org/x --reason x", "--reason does nothing without --force"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(home: object, words: str, said: str) -> None:
    done = CliRunner().invoke(cli, words.split())
    assert isinstance(done.exception, BadInput), done.output
    assert said in str(done.exception)
