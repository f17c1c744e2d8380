"""`loradock generate` on real vLLM, killed in the middle: each answer is what vLLM gives that adapter alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loradock.registry import promotion, recording
from loradock.registry.base import resolve
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support import dying, warm
from tests.support.adapters import make_version
from tests.support.serving import exact

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

ROOT = Path(__file__).parents[3]
VLLM = (*exact.OPTIONS, "--max-model-len", "128", "--max-num-seqs", "4", "--max-num-batched-tokens", "256")
TOKENS = 48
"""Greedy ones are the same alone as in a batch: float32 rounding moves a log-probability by about 5e-5, and nowhere in
these answers are the two best tokens nearer than 2.6e-3."""
PROMPTS = (
    "The capital of France is",
    "Once upon a time",
    "My favourite food is",
    "A good teacher",
    "def main():",
    "To bake bread you",
)
MODELS = ("", "ant", "bee@production", "cow/1")
LONG, CHAT, SAMPLED = 24, 25, (26, 27)
ROWS: list[dict[str, Any]] = [
    *({"model": model, "prompt": prompt} for prompt in PROMPTS for model in MODELS),
    {"model": "ant", "prompt": "too long " * 200},
    {"model": "bee", "messages": [{"role": "user", "content": "Who are you?"}]},
    *({"model": "cow", "prompt": "The sea was", "temperature": 1.0, "seed": 5} for _ in SAMPLED),
]

GENERATE = "from loradock.cli.generate import generate; generate()"
# The same run, gone on with and, once it is whole, every row asked again of the same engine, alone.
RESUME = """
import json, sys
from pathlib import Path
from loradock.registry.refs import VersionRef
from loradock.registry.settings import Settings
from loradock.serving.batch import Job, Sampling, offline, run
from vllm import SamplingParams

job = json.load(sys.stdin)
kept = []

def boot(*args, **options):
    kept.append(offline.boot(*args, **options))
    return kept[0]

sampling = Sampling(max_tokens=job["tokens"], temperature=0.0)
wish = Job(job["base"], Path(job["input"]), Path(job["output"]), sampling=sampling, vllm=tuple(job["vllm"]))
done = run(wish, Settings(), boot=boot)
engine, llm = kept[0], kept[0]._llm
alone = []
for row in job["rows"]:
    name = row["model"].partition("@")[0].partition("/")[0]
    request = engine._loaded.get(VersionRef(name, 1))
    params = SamplingParams(temperature=row.get("temperature", 0.0), seed=row.get("seed"), max_tokens=job["tokens"])
    if "messages" in row:
        (output,) = llm.chat([row["messages"]], params, lora_request=request, use_tqdm=False)
    elif row["prompt"].startswith("too long"):
        alone.append(None)
        continue
    else:
        (output,) = llm.generate([row["prompt"]], params, lora_request=request, use_tqdm=False)
    alone.append(output.outputs[0].text)
Path(job["result"]).write_text(json.dumps({"done": done.model_dump(), "alone": alone}))
"""


@dataclass(frozen=True)
class Found:
    """What two processes made of one file, the first of which was killed."""

    kept: dict[int, str]
    """The lines that the first one left, by row."""
    answers: list[dict[str, Any]]
    lines: list[str]
    alone: list[str | None]
    done: dict[str, Any]


@pytest.fixture(scope="module")
def found(shallow_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    scratch = tmp_path_factory.mktemp("batch")
    settings = Settings(home=scratch / "home")
    store, base = Store(settings), resolve(str(shallow_dir), settings).base
    versions = [
        make_version(store, scratch / name, name, base=base, scale=20.0, seed=seed, rank=rank)
        for name, seed, rank in (("ant", 1, 4), ("bee", 2, 8), ("cow", 3, 16))
    ]
    recording.record(store, versions, print, str(shallow_dir))
    for version in versions:
        promotion.promote(store, version.ref, "production", actor="tester")
    source, output, result = scratch / "in.jsonl", scratch / "out.jsonl", scratch / "result.json"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    environ = os.environ | {
        "LORADOCK_HOME": str(settings.home),
        "PYTHONPATH": str(ROOT),
        **exact.ENVIRON,
    }
    log = scratch / "log"
    command = [*("--base", str(shallow_dir), "--input", str(source), "--output", str(output))]
    command += [*("--max-tokens", str(TOKENS), "--temperature", "0", "--", *VLLM)]
    partial = output.with_name("out.jsonl.partial")
    killed = dying.command(GENERATE, "loradock.serving.batch.journal:Journal", "add", 4)
    with log.open("w") as sink:
        process = warm.Popen([*killed, *command], kind="serving", env=environ, stdout=sink, stderr=sink)
    assert process.wait() == -signal.SIGKILL, log.read_text()[-4000:]
    assert not output.exists()
    whole = partial.read_text().rpartition("\n")[0].splitlines()
    job = {"base": str(shallow_dir), "input": str(source), "output": str(output), "result": str(result)}
    given = json.dumps(job | {"tokens": TOKENS, "vllm": VLLM, "rows": ROWS})
    with log.open("w") as sink:
        process = warm.Popen(
            [sys.executable, "-c", RESUME],
            kind="serving",
            env=environ,
            stdin=subprocess.PIPE,
            text=True,
            stdout=sink,
            stderr=sink,
        )
        process.communicate(given)
    assert result.exists(), log.read_text()[-4000:]
    told = json.loads(result.read_text())
    lines = output.read_text().splitlines()
    return Found(
        {json.loads(line)["index"]: line for line in whole},
        [json.loads(line) for line in lines],
        lines,
        told["alone"],
        told["done"],
    )


def test_each_answer_is_what_the_adapter_says_alone(found: Found) -> None:
    assert [answer["text"] for answer in found.answers] == found.alone


def test_every_adapter_changes_the_answer(found: Found) -> None:
    """Or equal answers would prove nothing."""
    for start in range(0, len(PROMPTS) * len(MODELS), len(MODELS)):
        said = {answer["text"] for answer in found.answers[start : start + len(MODELS)]}
        assert len(said) == len(MODELS), said


def test_what_was_answered_before_the_kill_stands(found: Found) -> None:
    assert len(found.kept) >= 4
    assert found.done["kept"] == len(found.kept) < len(ROWS)
    assert [answer["index"] for answer in found.answers] == list(range(len(ROWS)))
    assert found.kept.items() <= dict(enumerate(found.lines)).items()


def test_every_answer_names_its_version(found: Found) -> None:
    bare = found.answers[0]["model"]
    assert [answer["model"] for answer in found.answers[:LONG]] == [bare, "ant/1", "bee/1", "cow/1"] * len(PROMPTS)
    assert bare == "SmolLM2-2-layers"


def test_a_row_that_is_too_long_fails_alone(found: Found) -> None:
    row = found.answers[LONG]
    assert "maximum context length is 128" in row["error"]
    assert (row["text"], row["usage"]) == (None, None)
    assert found.done["failed"] == 1


def test_a_seed_gives_the_same_answer_again(found: Found) -> None:
    one, other = (found.answers[index] for index in SAMPLED)
    assert one["text"] == other["text"]
    assert one["usage"]["completion_tokens"] > 1
