"""The site: it builds, knows every page, shows every picture, and asks no network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml

from loradock.cli import VERBS
from loradock.cli import settings as settings_verb
from loradock.registry import errors, secret
from tests.support.docs.pages import DOCS, DOCUMENTS, PAGES, ROOT


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
    return unescape(re.sub(r"<[^>]+>", "", html.read_text(encoding="utf-8")))


def in_nav(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from in_nav(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_navigation() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = list(in_nav(config["nav"]))
    assert {str(page.relative_to(DOCS)) for page in PAGES} <= set(named)
    assert len(set(named)) == len(named)


def test_every_picture_is_small_and_in_a_page() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (*DOCUMENTS, ROOT / "CONTRIBUTING.md"))
    for picture in (DOCS / "pictures").iterdir():
        assert f"pictures/{picture.name})" in text, picture.name
        assert picture.stat().st_size < 200_000, picture.name


@pytest.mark.slow
def test_the_site_asks_no_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        asked = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(https?:[^\"]+)", page.read_text("utf-8"))
        assert asked == [], page


def test_the_reference_has_every_verb_setting_and_error(site: Path) -> None:
    commands = visible(site / "reference" / "commands.html")
    assert all(f"loradock {name}" in commands for name in VERBS)
    settings = visible(site / "reference" / "settings.html")
    for target in settings_verb.OURS:
        for row in settings_verb.ours(settings_verb.load(target), {}):
            assert row.variable in settings
            assert row.meaning.rstrip(".").replace("`", "") in settings
    assert all(f"{name}{secret.SUFFIX}" in settings for name in secret.VARIABLES)
    tree = visible(site / "reference" / "errors.html")
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.LoradockError)
    ]
    assert all(kind.__name__ in tree for kind in kinds)
