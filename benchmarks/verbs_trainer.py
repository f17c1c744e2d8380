"""How long the trainer's verbs that train nothing take, beside `python -c "import peft"`.

    .venv/bin/python benchmarks/verbs_trainer.py --rounds 5

Each is a process of its own, and all take turns in one run. Figures are medians: seconds from the command to its end,
processor seconds, and the peak of the process's memory; a ratio is the median of the ratios of processor seconds in a
turn, since other work on the machine stretches the clock. `plan, first` is that of a base of which nothing is known
yet, `plan` the same one again. `--tree DIRECTORY` measures another checkout with the same Python.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

ROOT: Final = Path(__file__).resolve().parent.parent
IMPORT: Final = "import peft"
AXOLOTL: Final = """\
base_model: org/name
datasets: [{path: org/rows, type: alpaca}]
adapter: lora
lora_r: 8
lora_alpha: 16
lora_target_modules: [q_proj, v_proj]
micro_batch_size: 2
sequence_len: 512
num_epochs: 1
learning_rate: 2e-4
"""
OURS: Final = f"base: {ROOT / 'tests/bases/Llama-3.1-8B'}\ndata: rows.jsonl\nmethod: {{type: lora, r: 8}}\n"
ROW: Final = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
VERBS: Final[Mapping[str, Sequence[str]]] = {
    "translate": ("translate", "axolotl.yaml"),
    "methods": ("methods",),
    "methods dora": ("methods", "dora"),
    "plan, first": ("plan", "recipe.yaml", "--json"),
    "plan": ("plan", "recipe.yaml", "--json"),
}


@dataclass(frozen=True, slots=True)
class Cost:
    """What one process took."""

    seconds: float
    processor: float
    mebibytes: float


def cost(words: Sequence[str], directory: Path, environment: Mapping[str, str]) -> Cost:
    """Run Python to its end."""
    with tempfile.TemporaryFile() as said:
        begun = time.perf_counter()
        process = subprocess.Popen([sys.executable, *words], cwd=directory, env=environment, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        assert process.returncode == 0, said.read().decode()
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def turn(number: int, directory: Path, tree: Path) -> dict[str, Cost]:
    """Each once; the cache is this turn's own."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "HF_HUB_OFFLINE": "1",
        "LORADOCK_HOME": str(directory / "home"),
        "LORADOCK_CACHE": str(directory / f"cache-{number}"),
    }
    found = {IMPORT: cost(["-c", IMPORT], directory, environment)}
    for verb, words in VERBS.items():
        found[verb] = cost(["-m", "loradock", *words], directory, environment)
    return found


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tree", type=Path, default=ROOT)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for file, text in {"axolotl.yaml": AXOLOTL, "recipe.yaml": OURS, "rows.jsonl": ROW}.items():
            (directory / file).write_text(text)
        turns = [turn(number, directory, given.tree.resolve()) for number in range(given.rounds)]
    table = Table(title=f"{given.rounds} turns", box=None)
    for column in ("", "seconds", "processor", "MiB", f"of {IMPORT}"):
        table.add_column(column, justify="right" if column else "left")
    for verb in (IMPORT, *VERBS):
        costs = [each[verb] for each in turns]
        ratio = statistics.median(each[verb].processor / each[IMPORT].processor for each in turns)
        medians = (statistics.median(getattr(each, field) for each in costs) for field in ("seconds", "processor"))
        memory = statistics.median(each.mebibytes for each in costs)
        table.add_row(verb, *(f"{value:.2f}" for value in medians), f"{memory:.0f}", f"{ratio:.3f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
