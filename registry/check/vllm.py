"""What vLLM 0.32 decides by a base's architecture alone; a test holds these tables against vLLM's own source."""

from __future__ import annotations

from typing import Final

RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM can be started with as --max-lora-rank (vllm/config/lora.py)."""
MAX_RANK: Final = RANKS[-1]
"""The largest rank that vLLM can be started for."""

PLAIN_STARTS: Final = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Values of init_lora_weights after which an adapter is plain LoRA for vLLM (vllm/lora/peft_helper.py)."""

FUSED_EXPERTS: Final = frozenset(
    {
        "GptOssForCausalLM", "InternS1ProForConditionalGeneration", "InternS2MobiusForConditionalGeneration",
        "InternS2PreviewForConditionalGeneration", "Qwen3OmniMoeForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration",
    }
)  # fmt: skip
"""Architectures whose experts vLLM takes LoRA for in one tensor for all, and of no other form; elsewhere one by one."""

NO_LORA: Final = frozenset(
    {
        "BailingMoeV2_5ForCausalLM", "BailingMoeV3ForCausalLM", "BloomForCausalLM", "Cohere2MoeForCausalLM",
        "DbrxForCausalLM", "FalconForCausalLM", "FalconMambaForCausalLM", "GPT2LMHeadModel", "GPTJForCausalLM",
        "Gemma3nForCausalLM", "HCXVisionV2ForCausalLM", "HrmTextForCausalLM", "IQuestLoopCoderForCausalLM",
        "Mamba2ForCausalLM", "MambaForCausalLM", "MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM", "OrionForCausalLM",
        "StableLmForCausalLM", "Step1ForCausalLM", "Step3TextForCausalLM", "Step3p5ForCausalLM", "Zamba2ForCausalLM",
    }
)  # fmt: skip
"""Architectures that vLLM serves, but not with LoRA."""

NO_EMBEDDINGS: Final = frozenset(
    {
        "AXK1ForCausalLM", "AfmoeForCausalLM", "BailingMoeForCausalLM", "BailingMoeV2ForCausalLM",
        "ChatGLMForConditionalGeneration", "ChatGLMModel", "DeepseekForCausalLM", "DeepseekV2ForCausalLM",
        "DeepseekV3ForCausalLM", "Ernie4_5_MoeForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM",
        "Gemma4ForCausalLM", "GemmaForCausalLM", "Glm4ForCausalLM", "Glm4MoeForCausalLM", "Glm4MoeLiteForCausalLM",
        "GptOssForCausalLM", "HYV3ForCausalLM", "InternLM2ForCausalLM", "LagunaForCausalLM",
        "LongcatFlashForCausalLM", "LongcatFlashNgramForCausalLM", "MiMoForCausalLM", "MiniMaxM2ForCausalLM",
        "Ministral3ForCausalLM", "MistralForCausalLM", "MistralLarge3ForCausalLM", "MuseGlimmerForCausalLM",
        "OPTForCausalLM", "OlmoHybridForCausalLM", "OlmoeForCausalLM", "PanguEmbeddedForCausalLM",
        "PanguProMoEV2ForCausalLM", "PanguUltraMoEForCausalLM", "Plamo3ForCausalLM", "Qwen2ForCausalLM",
        "Qwen2MoeForCausalLM", "Qwen3NextForCausalLM", "Rnj1ForCausalLM", "SarvamMLAForCausalLM",
        "SarvamMoEForCausalLM",
    }
)  # fmt: skip
"""Architectures that vLLM serves with LoRA on linear layers, but not on embed_tokens or lm_head."""
