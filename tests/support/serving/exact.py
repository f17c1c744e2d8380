"""With what vLLM says the same alone as in any batch: float32 on a CPU; on a GPU its batch-invariant mode.

vLLM's LoRA kernels for GPUs take 16 bits only. Several servers share the card there.
"""

from __future__ import annotations

from typing import Final

from loradock.serving.launch import on_cpu

ON_GPU: Final = not on_cpu()
DTYPE: Final = "bfloat16" if ON_GPU else "float32"
SHARED: Final = ("--gpu-memory-utilization", "0.1", "--kv-cache-memory-bytes", "2G") if ON_GPU else ()
OPTIONS: Final = ("--dtype", DTYPE, *SHARED)
ENVIRON: Final = {"VLLM_NO_USAGE_STATS": "1"} | (
    {"VLLM_BATCH_INVARIANT": "1"} if ON_GPU else {"VLLM_CPU_KVCACHE_SPACE": "1"}
)
WITHIN: Final = {} if ON_GPU else {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""The engine's worker within the engine, as on one GPU. vLLM starts a process of its own for it on a CPU, and both that
process and the engine that waits for it compute for a second after each step."""
