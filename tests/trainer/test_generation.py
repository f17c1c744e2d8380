"""Greedy answers follow the logits alone, whatever generation_config.json says, and end where vLLM ends them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from loradock.trainer.generation import generate, stops
from loradock.trainer.quiet import quiet

PROMPTS = ("A a a a a", "Once upon a time")
CHOOSING = {
    "no_repeat_ngram_size": 1,
    "repetition_penalty": 3.0,
    "suppress_tokens": list(range(300, 20000)),
    "min_new_tokens": 4,
    "do_sample": True,
    "temperature": 5.0,
}


def greedy(model: Any, ids: list[int], count: int, ends: set[int]) -> list[int]:
    """The largest logit, one token after another."""
    said: list[int] = []
    while len(said) < count and not ends & set(said):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*ids, *said]]), use_cache=False).logits
        said.append(int(logits[0, -1].argmax()))
    return said


@pytest.mark.parametrize(
    "method",
    [
        None,
        LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    ],
)
def test_answers_are_the_largest_logits_whatever_the_base_says(method: Any, shallow_dir: Path) -> None:
    torch.manual_seed(0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(shallow_dir), AutoTokenizer.from_pretrained(shallow_dir)
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    model.generation_config = config = GenerationConfig(eos_token_id=2, **CHOOSING)
    worn = (get_peft_model(model, method) if method else model).eval()
    wanted = [tokenizer.decode(greedy(worn, ids, 8, {2}), skip_special_tokens=True) for ids in prompts]
    with quiet():
        assert [generate(worn, tokenizer, [ids], 8)[0] for ids in prompts] == wanted
    assert model.generation_config is config


def test_an_answer_ends_at_the_tokenizers_end_and_at_those_of_the_base(shallow_dir: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(shallow_dir), AutoTokenizer.from_pretrained(shallow_dir)
    ids = tokenizer(PROMPTS[1])["input_ids"]
    said = greedy(model.eval(), ids, 4, set())
    for named, end in (
        (said[1], "<|im_end|>"),
        ([0, said[1]], "<|im_end|>"),
        (0, tokenizer.convert_ids_to_tokens(said[1])),
    ):
        model.generation_config = GenerationConfig(eos_token_id=named)
        tokenizer.eos_token = end
        answer = generate(model, tokenizer, [ids], 4)[0]
        assert tokenizer.decode(said[:1]) in answer
        assert len(answer) < len(tokenizer.decode(said))


@pytest.mark.parametrize(("named", "found"), [(0, {0, 2}), ([0, 5], {0, 2, 5}), (None, {2}), ("no file", {2, 7})])
def test_stops_are_those_of_vllm(named: Any, found: set[int], shallow_dir: Path, tmp_path: Path) -> None:
    base = shutil.copytree(shallow_dir, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"eos_token_id": 7}))
    path = base / "generation_config.json"
    path.unlink() if named == "no file" else path.write_text(json.dumps({"eos_token_id": named}))
    assert stops(base, AutoTokenizer.from_pretrained(base)) == found
