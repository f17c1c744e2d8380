"""The site: it builds, knows every page, asks no network; and what its pages tell people to type is what there is."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from registry import errors, promotion
from registry.cli import VERBS, cli
from registry.cli import settings as settings_verb
from registry.store import Store
from tests.adapters import make_version, write_adapter

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
MARK = "<!-- run -->\n```console\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it: a link that leads nowhere stops it."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | QUIET)
    assert done.returncode == 0, done.stderr
    return out


QUIET = {"NO_MKDOCS_2_WARNING": "1"}


def visible(html: Path) -> str:
    return re.sub(r"<[^>]+>", "", html.read_text(encoding="utf-8"))


def in_nav(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from in_nav(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_navigation() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = list(in_nav(config["nav"]))
    assert {str(page.relative_to(DOCS)) for page in PAGES} <= set(named)
    assert len(set(named)) == len(named)


def test_the_site_asks_no_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        asked = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(https?:[^\"]+)", page.read_text("utf-8"))
        assert asked == [], page


def test_the_reference_has_every_verb_setting_and_error(site: Path) -> None:
    commands = visible(site / "reference" / "commands.html")
    assert all(f"loradock {name}" in commands for name in VERBS)
    for target in settings_verb.OURS:
        assert all(
            name in visible(site / "reference" / "settings.html") for name in settings_verb.load(target).variables()
        )
    tree = visible(site / "reference" / "errors.html")
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.LoradockError)
    ]
    assert all(kind.__name__ in tree for kind in kinds)


def typed() -> Iterator[tuple[str, str]]:
    """Every `$ loradock ...` in a document, with the document."""
    for page in [ROOT / "README.md", *PAGES]:
        for block in re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in re.findall(r"^\$ (loradock .*)$", block, re.MULTILINE):
                yield str(page.relative_to(ROOT)), line


def fault(line: str) -> str:
    """What click says of a command, parsed as it would be run; files need not be there."""
    words = shlex.split(line, comments=True)
    words = words[1 : next((at for at, word in enumerate(words) if re.match(r"[|&;>]|\d>", word)), None)]
    with cli.make_context("loradock", words[:1], resilient_parsing=True) as context:
        if (command := cli.get_command(context, words[0])) is None:
            return "no such verb"
        try:
            command.make_context(words[0], words[1:], parent=context)
        except click.exceptions.Exit:  # --help
            return ""
        except click.UsageError as error:
            return "" if "does not exist" in error.message else error.message
    return ""


def test_what_the_documents_say_to_type_is_understood() -> None:
    found = list(typed())
    assert len(found) > 40
    assert [(page, line, said) for page, line in found if (said := fault(line))] == []


def prepare(page: str, directory: Path, store: Store) -> None:
    """What a page takes to be there."""
    (directory / "examples").symlink_to(ROOT / "examples")
    if page == "how-to/axolotl.md":
        out = write_adapter(directory / "outputs" / "lora-out")
        (out / "manifest.json").unlink()
        (out / "README.md").write_text("written by Axolotl")
    elif page == "how-to/gate.md":
        for seed in range(2):
            version = make_version(store, directory / str(seed), seed=seed)
            if not seed:
                promotion.promote(store, version.ref, "production", actor="tester")


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [str(page.relative_to(DOCS)) for page in PAGES if MARK in page.read_text(encoding="utf-8")]
)
def test_what_a_page_marks_as_run_runs(page: str, store: Store, tmp_path: Path) -> None:
    directory = tmp_path / "work"
    directory.mkdir()
    prepare(page, directory, store)
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(re.escape(MARK) + r"(.*?)```", text, re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    environ = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(lines)],
        cwd=directory,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if page == "how-to/gate.md":
        assert "refused with 3" in done.stdout
        assert dict(store.family("support-bot").aliases) == {"production": 1}
