"""A base that cannot be chatted with is refused before its weights are read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from registry.base import LocalBase
from registry.errors import BadInput
from registry.records import Base
from trainer import base


def local(path: Path) -> LocalBase:
    return LocalBase(path, Base(id="org/model", config_digest="0", weights_digest="0"))


def test_no_chat_template(base_dir: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base_dir / name, tmp_path)
    with pytest.raises(BadInput, match="the tokenizer of org/model has no chat template"):
        base.load(local(tmp_path))


def test_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BadInput, match="the tokenizer of org/model cannot be read"):
        base.load(local(tmp_path))


def test_no_weights(base_dir: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base_dir / name, tmp_path)
    with pytest.raises(BadInput, match="the model of org/model cannot be read"):
        base.load(local(tmp_path))
