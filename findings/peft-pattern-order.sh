#!/usr/bin/env bash
# PEFT 0.21.2, transformers 5.19.0, torch 2.13.0 (CPU).
# Of several keys of alpha_pattern or rank_pattern that match one module, PEFT takes the first. save_pretrained sorts the
# keys. So an adapter with a general key before a special one computes something else after it was saved and loaded, and
# with rank_pattern it cannot be loaded.
# Seen on 2026-11-30:
#   alpha_pattern {"q_proj": 2, "layers.0.self_attn.q_proj": 512}: scaling of layer 0 in memory 0.5, after load 128.0
#   rank_pattern  {"q_proj": 2, "layers.0.self_attn.q_proj": 8}:   load fails with RuntimeError (size mismatch)
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.19.0 peft==0.21.2
cd "$scratch"
"$scratch/venv/bin/python" - <<'PYTHON'
import warnings

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")
assert peft.__version__ == "0.21.2", peft.__version__
SMALL = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4
)


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(SMALL)


def saved(name, **patterns):
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **patterns)
    model = get_peft_model(base(), config)
    model.save_pretrained(name)
    return model


def scaling(model):
    return model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"]


before = scaling(saved("alpha", alpha_pattern={"q_proj": 2, "layers.0.self_attn.q_proj": 512}))
after = scaling(PeftModel.from_pretrained(base(), "alpha"))
print(f"alpha_pattern: scaling of layer 0 in memory {before}, after load {after}")
assert (before, after) == (0.5, 128.0)

saved("rank", rank_pattern={"q_proj": 2, "layers.0.self_attn.q_proj": 8})
try:
    PeftModel.from_pretrained(base(), "rank")
except RuntimeError as error:
    assert "size mismatch" in str(error), error
    print("rank_pattern: load fails with RuntimeError (size mismatch)")
else:
    raise SystemExit("rank_pattern: it loads, which it did not")
PYTHON
