"""What the documents tell people to type is what there is: commands, options, imports, recipes, policies."""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections.abc import Iterator

import click
import pytest
import yaml

from loradock.cli import VERBS, cli
from loradock.cli.command import Command
from loradock.registry import policy
from loradock.trainer.recipe import Recipe
from tests.support.docs.commands import fault
from tests.support.docs.pages import DOCUMENTS, ROOT, Block, blocks, simple

BLOCKS = [block for path in DOCUMENTS for block in blocks(path)]
SHELL = [block for block in BLOCKS if block.commands]
SHOWN = {"", "text", "json", "yaml", "python", "ini", "toml", "diff", "mermaid"}
"""The languages of blocks that nobody types into a shell."""


def typed() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every program with its words that a document tells people to type."""
    for block in SHELL:
        for command in block.commands:
            for words in simple(command):
                yield block.page, words


def test_every_command_of_the_documents_is_understood() -> None:
    found = list(typed())
    assert sum(words[0] == "loradock" for _, words in found) > 80
    assert [(page, words, said) for page, words in found if (said := fault(words))] == []


@pytest.mark.parametrize(
    "wrong",
    [
        "loradock promot support-bot/1",
        "loradock promote support-bot/1 --becuase x",
        "mlflow server --workerz 2",
        "make install demmo",
        "export LORADOCK_HOMME=x",
        "LORADOCK_SERVE_POL=1 loradock serve --base x",
        "docker compose --profile npu up",
        "docker compose run --rm promoter promot support-bot/1",
        "docker compose stop server",
        "docker build --target lora .",
        "kubectl apply -f examples/kubernetes/server.yaml",
        "pip install '.[servers]'",
        "curl http://127.0.0.1:8000/v2/chat",
        "stack/secret.sh",
        "loradok list",
        "until loradock redy; do sleep 1; done",
        'eval "$(loradock completions bash)"',
    ],
)
def test_a_command_that_is_wrong_is_found(wrong: str) -> None:
    assert any(fault(words) for words in simple(wrong)), wrong


@pytest.mark.parametrize("name", VERBS)
def test_the_help_of_every_verb_opens_with_an_example_that_is_understood(name: str) -> None:
    with click.Context(cli) as context:
        command = cli.get_command(context, name)
        assert isinstance(command, Command)
        assert command.examples
        assert command.get_help(context).index("Example:") < command.get_help(context).index("Options:")
    for example in command.examples:
        found = list(simple(example))
        assert ("loradock", name) in {words[:2] for words in found}
        assert [said for words in found if (said := fault(words))] == []


def test_every_block_is_of_a_language_whose_commands_are_looked_at() -> None:
    unknown = [(block.page, block.language) for block in BLOCKS if not block.commands and block.language not in SHOWN]
    assert unknown == []
    hidden = [block for block in BLOCKS if block.language in SHOWN - {"text"} and "\n$ " in f"\n{block.text}"]
    assert hidden == [], "a command in a block that is not of the language console"


def spans() -> Iterator[tuple[str, str, str]]:
    """Every `loradock VERB ...` within a sentence or a table: its document, verb and words."""
    for path in DOCUMENTS:
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for verb, words in re.findall(r"`loradock ([a-z]+)([^`]*)`", text):
            yield str(path.relative_to(ROOT)), verb, words.replace("\\|", "|").partition(" -- ")[0]


def test_every_verb_and_option_that_a_sentence_names_is_there() -> None:
    options = {}
    with click.Context(cli) as context:
        for name in VERBS:
            command = cli.get_command(context, name)
            assert command is not None
            options[name] = {"--help", *(one for param in command.params for one in param.opts)}
    found = list(spans())
    assert len(found) > 80
    wrong = [(page, verb) for page, verb, _ in found if verb not in VERBS]
    wrong += [
        (page, f"{verb} {option}")
        for page, verb, words in found
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", words)
        if option not in options.get(verb, {option})
    ]
    assert wrong == []


def test_python_in_the_documents_is_run_by_a_test() -> None:
    guide = "docs/how-to/python.md"  # whose other blocks tests/test_surface.py runs, in one process
    left = [block.page for block in BLOCKS if block.language == "python" and block.exits is None]
    assert set(left) <= {guide}
    assert left.count(guide) == (ROOT / guide).read_text(encoding="utf-8").count("```python\n")


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=lambda one: one.page)
def test_python_in_the_documents_parses_and_imports_what_there_is(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("loradock"):
            module = importlib.import_module(str(node.module))
            for name in node.names:
                stays = name.name in getattr(module, "__all__", ())  # those are imported when they are first used
                assert stays or hasattr(module, name.name) or importlib.import_module(f"{node.module}.{name.name}")


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language in ("yaml", "json")], ids=lambda one: one.page
)
def test_yaml_and_json_in_the_documents_say_what_is_understood(block: Block) -> None:
    if block.language == "json":
        for line in block.text.splitlines():
            json.loads(line)
        return
    for found in yaml.safe_load_all(block.text):
        if block.page == "docs/policy.md":
            policy.parse(block.text)
        elif block.page in ("README.md", "docs/recipe.md", "docs/data.md", "docs/methods.md"):
            Recipe.model_validate({"name": "it", "base": "base", "data": "rows.jsonl", **found})
