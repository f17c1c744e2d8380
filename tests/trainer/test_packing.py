"""Packed rows are kept apart, or packing is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from loradock.registry.errors import BadInput
from loradock.registry.settings import Settings
from loradock.trainer import packing
from loradock.trainer.tokens import Tokens
from tests.support.trainer.training import TRAINING, loss_of, stored, trained, written

ROWS = (Tokens(tuple(range(3, 30)), (1,) * 27), Tokens(tuple(range(31, 5, -1)), (1,) * 26))


def llama(attention: str) -> Any:
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4
    )
    config._attn_implementation = attention
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_llama_keeps_rows_apart(attention: str) -> None:
    model = llama(attention)
    assert packing.contamination(model, ROWS[0].input_ids, ROWS[1].input_ids) < 1e-3
    packing.check(model, ROWS)


def test_rows_without_their_own_positions_would_see_each_other() -> None:
    """What is measured is large where rows are not told apart, so a small value says something."""
    model = llama("sdpa")
    blind = model.forward
    model.forward = lambda **inputs: blind(**{**inputs, "position_ids": None})
    assert packing.contamination(model, ROWS[0].input_ids, ROWS[1].input_ids) > 0.1
    with pytest.raises(BadInput, match="packed rows of this base see each other with sdpa"):
        packing.check(model, ROWS)


@pytest.mark.parametrize("kind", ["bloom", "falcon"])
def test_a_model_whose_attention_sees_other_rows_is_refused(kind: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=4)
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        weight.data.normal_(0, 0.3)  # as large as trained ones: attention of an untrained model is all but even
    with pytest.raises(BadInput, match="packed rows of this base see each other"):
        packing.check(model, ROWS)


@pytest.mark.slow
def test_a_packed_training_learns_what_it_would_learn(home: Path, tmp_path: Path, shallow_dir: Path) -> None:
    training = {**TRAINING, "max_steps": 2, "packing": True, "max_length": 256}
    source, rows = written(tmp_path, shallow_dir, training=training)
    outcome = trained(source, rows, Settings())
    stored(outcome, Settings(), tmp_path / "adapter")
    assert outcome.eval_loss < outcome.eval_loss_before
    assert loss_of(tmp_path / "adapter", source, rows, shallow_dir) == pytest.approx(outcome.eval_loss, abs=2e-3)
