"""What a replica says that its answers are made by, where vLLM's options take some of it from elsewhere."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from loradock.registry.base import LocalBase
from loradock.registry.text import settings_of
from loradock.serving.plugin import _text
from tests.support.adapters import SMOL

PLAIN: dict[str, Any] = {
    "tokenizer": None,
    "chat_template": None,
    "generation_config": "auto",
    "override_generation_config": {},
}


@pytest.fixture
def local(tmp_path: Path) -> LocalBase:
    for name, vocabulary in (("base", "a"), ("other", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vocab.txt").write_text(vocabulary)
    return LocalBase(tmp_path / "base", SMOL)


@pytest.mark.parametrize(
    ("options", "unknown"),
    [
        ({}, set()),
        ({"chat_template": "mine.jinja"}, {"template"}),
        ({"generation_config": "vllm"}, {"generation"}),
        ({"override_generation_config": {"temperature": 1}}, {"generation"}),
        ({"tokenizer": "org/name"}, {"tokenizer", "template"}),
    ],
)
def test_what_is_taken_from_elsewhere_is_unknown(options: dict[str, Any], unknown: set[str], local: LocalBase) -> None:
    found, base = _text(Namespace(**PLAIN | options), local), settings_of(local.path)
    wanted = {name: "" if name in unknown else digest for name, digest in base.model_dump().items()}
    assert found.model_dump() == wanted


def test_another_tokenizers_directory_is_read(local: LocalBase) -> None:
    other = local.path.parent / "other"
    found = _text(Namespace(**PLAIN | {"tokenizer": str(other)}), local)
    assert found.tokenizer == settings_of(other).tokenizer != settings_of(local.path).tokenizer
