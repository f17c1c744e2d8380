"""How much memory there is for a training, on a machine and in a container with less."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from loradock.cli.plan import plan
from loradock.registry import machine
from loradock.registry.machine import GIB
from loradock.trainer import room
from loradock.trainer.recipe import Recipe
from tests.support.cgroups import tree

BASE = Path(__file__).parents[1] / "bases" / "Llama-3.1-8B"
RECIPE = {"name": "x", "base": str(BASE), "data": "rows.jsonl", "method": "lora"}


@pytest.fixture(autouse=True)
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 4 GiB, of which half a GiB is used, on a machine of 16."""
    limit = {"memory.max": f"{4 * GIB}\n", "memory.current": f"{GIB // 2}\n"}
    monkeypatch.setattr(machine, "memory", partial(machine.memory, tree(tmp_path / "root", "0::/\n", limit)))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_a_training_in_a_container_has_what_the_container_has() -> None:
    assert room.available() == 3.5 * GIB
    words = room.lacking(Recipe.model_validate(RECIPE), BASE, 512, room.available())
    assert "and 3.5 GiB are free" in words


def test_a_plan_in_a_container_tells_what_the_container_has(tmp_path: Path, home: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}))
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE))
    done = CliRunner().invoke(plan, [str(tmp_path / "recipe.yaml"), "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["this_machine"]["available_gib"] == 3.5
