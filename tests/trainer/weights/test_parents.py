"""What no verb can make anything of is refused, and not taken without a part of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loradock.registry import artifact
from loradock.registry.artifact import CONFIG
from loradock.registry.errors import NotServable
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.trainer.weights import parents
from tests.support.trainer.adapters import adapter_maker

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("said", "changed", "reason"),
    [
        ({"use_dora": True}, {"use_dora": False}, "magnitudes"),  # as torchtune writes a DoRA adapter
        ({}, {"task_type": "SEQ_CLS"}, "SEQ_CLS"),
    ],
)
def test_an_adapter_that_would_be_taken_without_a_part_is_refused(
    said: dict[str, Any], changed: dict[str, Any], reason: str, settings: Settings, shallow_dir: Path, tmp_path: Path
) -> None:
    adapters = adapter_maker(settings, Store(settings), shallow_dir, tmp_path)
    directory = adapters.raw("one", "lora", r=4, target_modules=["q_proj", "v_proj"], **said)
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps(config | changed))
    artifact.canonicalise(directory)
    artifact.write_manifest(directory)
    version = adapters.version(directory, "one")
    with pytest.raises(NotServable, match=reason), parents.opened(adapters.store, version, adapters.local):
        pass
