from __future__ import annotations

from pathlib import Path

import pytest
from transformers import TrainerState

from loradock.registry.records import TextSettings
from loradock.trainer import workdir
from loradock.trainer.recipe import Recipe
from tests.support.adapters import SMOL


@pytest.mark.parametrize("best", ["checkpoint-10", None])
def test_a_checkpoint_whose_home_was_moved_names_the_best_one_beside_it(best: str | None, tmp_path: Path) -> None:
    (tmp_path / "old/checkpoint-20").mkdir(parents=True)
    place = str(tmp_path / "old" / best) if best else None
    state = TrainerState(global_step=20, best_global_step=10, best_model_checkpoint=place)
    state.save_to_json(str(tmp_path / "old/checkpoint-20/trainer_state.json"))
    before = (tmp_path / "old/checkpoint-20/trainer_state.json").read_bytes()
    workdir.rebase(tmp_path / "old/checkpoint-20")
    assert (tmp_path / "old/checkpoint-20/trainer_state.json").read_bytes() == before
    (tmp_path / "old").rename(tmp_path / "new")
    workdir.rebase(tmp_path / "new/checkpoint-20")
    found = TrainerState.load_from_json(str(tmp_path / "new/checkpoint-20/trainer_state.json"))
    state.best_model_checkpoint = str(tmp_path / "new" / best) if best else None
    assert found == state


def test_a_training_with_another_tokenizer_or_template_does_not_go_on_from_this_ones_checkpoints() -> None:
    recipe = Recipe.model_validate({"name": "tiny", "base": "base", "data": "rows.jsonl"})
    texts = [TextSettings(tokenizer=one, template=two) for one in "ab" for two in "cd"]
    assert len({workdir.identity(recipe, "d", SMOL, text) for text in texts}) == 4
