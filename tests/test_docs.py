"""The tables of the documentation, held against the code."""

from __future__ import annotations

import re
import typing
from pathlib import Path

from pydantic import BaseModel

from loradock.registry.policy import Rules
from loradock.registry.store.texts import FILES
from loradock.trainer import catalogue
from loradock.trainer.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent


def first_cells(file: str, section: str = "") -> list[str]:
    text = (ROOT / file).read_text(encoding="utf-8")
    if section:
        text = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


def keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *typing.get_args(field.annotation)]
        kind = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if kind is not None:
            found += keys(kind, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def test_every_key_of_a_recipe_is_documented_and_no_other() -> None:
    assert first_cells("docs/recipe.md") == keys(Recipe)


def test_every_method_is_documented_and_no_other() -> None:
    assert first_cells("docs/methods.md") == list(catalogue.ENTRIES)


def test_every_rule_of_a_policy_is_documented_and_no_other() -> None:
    assert first_cells("docs/policy.md") == list(Rules.model_fields)


def test_the_readme_is_of_one_screen_or_two_and_leaves_the_long_tables_to_the_reference() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
    assert len(first_cells("README.md", "By hand")) == 8


def test_every_line_on_what_is_noticed_names_a_test_that_is_there() -> None:
    text = (ROOT / "docs/explanation/trust.md").read_text(encoding="utf-8")
    section = text.split("\n## What of a history is noticed\n")[1].split("\n## ")[0]
    lines = re.split(r"\n(?=- )", section)[1:]
    assert len(lines) > 10
    for line in lines:
        assert "<!-- test: " in line, line
    for file, name in re.findall(r"<!-- test: (\S+)::(\S+) -->", section):
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")


def test_every_file_that_a_run_keeps_is_on_the_page_of_texts() -> None:
    page = (ROOT / "docs/explanation/texts.md").read_text(encoding="utf-8")
    written = r"(?:log_text|log_table|run\.text|run\.table)\(.*?\"([\w-]+\.\w+)\"\)"
    shelves = r"Shelf\(\s*\w+,\s*\"(\w+)\""
    sources = [
        path.read_text(encoding="utf-8")
        for room in ("registry", "trainer", "serving")
        for path in (ROOT / room).rglob("*.py")
    ]
    files = {file for source in sources for file in re.findall(written, source)}
    files |= {f"{name}.json" for source in sources for name in re.findall(shelves, source)} | {*FILES}
    assert files >= {"recipe.yaml", "samples.json", "rows.json", "evidence.json", "reference.json", "rollout.json"}
    assert {file for file in files if f"`{file}`" not in page} == set()


def test_links_between_the_documents_lead_somewhere() -> None:
    for file in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", file.read_text(encoding="utf-8")):
            if "reference/" not in target:  # made when the site is built, which holds the links to it itself
                assert (file.parent / target).exists(), (file, target)
