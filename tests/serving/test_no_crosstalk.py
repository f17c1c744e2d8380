"""In a batch that mixes base and three adapters, each request gets the tokens it gets alone: real vLLM, on the CPU."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import warm
from tests.support.serving import exact

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

ROOT = Path(__file__).parents[2]
RANKS = (4, 8, 16)
STD = 0.05
"""Of the adapters' B: enough to change what the base says, too little to make nonsense of it.

Greedy tokens can then be compared one for one: float32 rounding moves a log-probability by about 5e-5,
and nowhere in these answers are the two best tokens nearer than 8e-3.
"""
REQUESTS: tuple[tuple[str, int | None], ...] = (
    ("The capital of France is", None),
    ("Once upon a time", 4),
    ("Water boils when", None),
    ("My favourite food is", 8),
    ("A good teacher", None),
    ("def main():", 16),
    ("The moon is", None),
    ("To bake bread you", 4),
)
"""Prompts, each with the rank of its adapter; None is the base."""

on_cpu = pytest.mark.skipif(exact.ON_GPU, reason="about vLLM's CPU backend")

# A process of its own: vLLM's engine in it must not outlive the test, and stock and mended operations must not meet.
SCRIPT = """
import json, sys

def main():
    job = json.load(sys.stdin)
    if job["mended"]:
        from loradock.serving.cpu_ops import install
        install()
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(
        model=job["base"], dtype=job["dtype"], enable_lora=True, max_loras=len(job["adapters"]), max_lora_rank=16,
        max_model_len=128, max_num_seqs=8, max_num_batched_tokens=256, enable_prefix_caching=False,
    )
    adapters = {
        rank: LoRARequest(f"rank-{rank}", number, path) for number, (rank, path) in enumerate(job["adapters"], start=1)
    }
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)

    def answer(requests):
        loras = [adapters.get(rank) for _, rank in requests]
        outputs = llm.generate([prompt for prompt, _ in requests], params, lora_request=loras, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    result = {
        "together": answer(job["requests"]),
        "alone": [answer([request])[0] for request in job["requests"]] if job["alone"] else [],
        "base": [answer([(prompt, None)])[0] for prompt, rank in job["requests"] if rank] if job["alone"] else [],
        "compiled": llm.llm_engine.vllm_config.compilation_config.mode.name,
    }
    with open(job["result"], "w") as file:
        json.dump(result, file)

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def adapters(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str]]:
    """An adapter of each rank, with random weights large enough to change what the base says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    paths = []
    for rank in RANKS:
        torch.manual_seed(rank)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=STD)
        path = tmp_path_factory.mktemp("adapters") / f"rank-{rank}"
        model.save_pretrained(str(path))
        paths.append((rank, str(path)))
    return paths


@pytest.fixture(scope="module")
def run(base_dir: Path, adapters: list[tuple[int, str]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    def run(*, mended: bool, alone: bool) -> dict[str, Any]:
        result = tmp_path_factory.mktemp("answers") / "result.json"
        job = {
            "base": str(base_dir),
            "adapters": adapters,
            "requests": REQUESTS,
            "dtype": exact.DTYPE,
            "mended": mended,
            "alone": alone,
            "result": str(result),
        }
        environment = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "2",
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_PLUGINS": "",
            **exact.ENVIRON,
        } | ({} if exact.ON_GPU else {"VLLM_TARGET_DEVICE": "cpu"})
        process = warm.run(
            [sys.executable, "-c", SCRIPT], kind="serving", given=json.dumps(job), env=environment, timeout=900
        )
        assert process.returncode == 0, process.stderr[-4000:]
        answers: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return answers

    return run


@pytest.fixture(scope="module")
def mended(run: Any) -> dict[str, Any]:
    answers: dict[str, Any] = run(mended=not exact.ON_GPU, alone=True)
    return answers


@pytest.mark.story
def test_together_as_alone(mended: dict[str, Any]) -> None:
    assert mended["together"] == mended["alone"]


@pytest.mark.story
def test_every_adapter_changes_the_answer(mended: dict[str, Any]) -> None:
    """Or equal answers would prove nothing."""
    by_adapters = [tokens for tokens, (_, rank) in zip(mended["alone"], REQUESTS, strict=True) if rank]
    assert all(adapted != plain for adapted, plain in zip(by_adapters, mended["base"], strict=True))


@on_cpu
def test_vllm_compiles_nothing_where_lora_is_on(mended: dict[str, Any]) -> None:
    """What lets `loradock.serving.cpu_ops` be plain Python."""
    assert mended["compiled"] == "NONE"


@on_cpu
def test_stock_gives_the_base_an_adapters_output(run: Any, mended: dict[str, Any]) -> None:
    """Passes as long as vLLM has the fault; once this fails, `loradock.serving.cpu_ops` is needed for speed only."""
    stock = run(mended=False, alone=False)["together"]
    wrong = [got != want for got, want in zip(stock, mended["alone"], strict=True)]
    assert any(is_wrong for is_wrong, (_, rank) in zip(wrong, REQUESTS, strict=True) if rank is None)
    assert not any(is_wrong for is_wrong, (_, rank) in zip(wrong, REQUESTS, strict=True) if rank)
