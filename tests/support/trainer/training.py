"""Small trainings for tests: recipes, rows, and what a stored adapter's loss is when it is loaded again."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy

from loradock.registry.base import LocalBase, identify
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.trainer import base, data, recipe_file, run, tokens
from loradock.trainer.data import Rows
from loradock.trainer.recipe_file import RecipeFile
from loradock.trainer.run import Outcome

TRAINING = {"max_steps": 4, "learning_rate": 1e-3, "logging_steps": 1, "dtype": "float32"}
"""In one precision everywhere: left out, it is what the machine computes fast."""
NF4 = {"bnb_4bit_compute_dtype": "float32"}


def write_rows(directory: Path, count: int) -> None:
    """So many conversations of one question and its answer, as rows.jsonl."""
    messages = [
        [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"Arr, {n} be {n}!"}]
        for n in range(count)
    ]
    (directory / "rows.jsonl").write_text("\n".join(json.dumps({"messages": row}) for row in messages))


def written(directory: Path, base_dir: Path, *, rows: int = 20, **sections: Any) -> tuple[RecipeFile, Rows]:
    """A recipe with its data in `directory`; `sections` are added to it, or replace what it has."""
    write_rows(directory, rows)
    whole = {"base": str(base_dir), "data": {"path": "rows.jsonl", "heldout": 0.3}, "samples": 0, "training": TRAINING}
    path = directory / "tiny.yaml"
    path.write_text(json.dumps(whole | sections))
    source = recipe_file.load(path)
    return source, data.load(source.recipe.data, directory)


def trained(source: RecipeFile, rows: Rows, settings: Settings, **options: Any) -> Outcome:
    """Train, as the only process."""
    outcome = run.train(source, rows, settings, lambda _: None, **options)
    assert outcome is not None
    return outcome


def stored(outcome: Outcome, settings: Settings, into: Path) -> Mapping[str, Any]:
    """Fetch a run's adapter, and return its configuration."""
    store = Store(settings)
    adapter, _ = store.adapter_of(outcome.run_id)
    into.mkdir()
    store.download(adapter, into, what="the adapter")
    found: Mapping[str, Any] = json.loads((into / "adapter_config.json").read_text())
    return found


def loss_of(adapter: Path, source: RecipeFile, rows: Rows, base_dir: Path) -> float:
    """The held-out loss of a stored adapter on a base that is loaded afresh, by plain PEFT and torch."""
    loaded = base.load(LocalBase(base_dir, identify(base_dir, base_id="base")), source.recipe)
    loaded.model.config.use_cache = False
    with warnings.catch_warnings():  # PEFT's remarks on methods and quantised bases are not what is tested
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(loaded.model, adapter).eval()
    kind = model.peft_config["default"].peft_type.value
    tasks = torch.zeros(1, dtype=torch.long, device=model.device)
    extra = {"task_ids": tasks} if kind in ("MULTITASK_PROMPT_TUNING", "POLY") else {}
    total = count = 0.0
    for row in tokens.fitting(*rows.split(source.recipe.data.heldout), loaded.tokenizer, 512).heldout.tokens:
        ids = torch.tensor([row.input_ids], device=model.device)
        kept = torch.tensor(row.completion_mask[1:], dtype=torch.bool, device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False, **extra).logits[0, -len(row.input_ids) :]  # after any prompt
        total += float(cross_entropy(logits[:-1][kept].float(), ids[0, 1:][kept], reduction="sum"))
        count += int(kept.sum())
    return total / count
