"""Every key of a LLaMA-Factory recipe, and what becomes of it.

The keys are those of llamafactory.hparams (0.9.5), transformers' TrainingArguments (5.19) included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from loradock.trainer.dialects.rules import (
    DEVICES,
    EVALUATION,
    KEPT,
    MLFLOW,
    NUMBERS,
    OPTIMIZER,
    PREFERENCE,
    RATES,
    READ,
    REMOTE_CODE,
    RESUME,
    SHUFFLED,
    TEMPLATE,
    TOKENIZER,
    VISION,
    VOCABULARY,
    WHOLE,
    Rule,
    each,
    idle,
    refused,
    to,
    worked,
)

NAME: Final = "LLaMA-Factory"
_ANSWERS: Final = "it is about answering, not about training"
_EXPORT: Final = "exporting and merging are no part of training"
_LOSS: Final = "the loss is that of the next token, each completion token weighing the same"
_MACHINE: Final = "the machine, its memory and its threads are no part of a recipe"
_WEIGHTS: Final = "which weights are trained is told by finetuning_type (lora, full, oft) and lora_target"
_WINDOW: Final = "the base's positions, attention and layers stay as they are"

_BASE: Final[Mapping[str, Rule]] = {
    "model_name_or_path": worked("base"),
    "model_revision": worked("base"),
    "trust_remote_code": idle(REMOTE_CODE),
    **each("adapter_name_or_path adapter_folder", refused("training starts a new adapter: " + RESUME)),
    **each("use_fast_tokenizer", idle(TOKENIZER, True)),
    "split_special_tokens": refused(TOKENIZER),
    **each("resize_vocab add_tokens add_special_tokens new_special_tokens_config", refused(VOCABULARY)),
    "init_special_tokens": idle(VOCABULARY, "noise_init"),
    **each("rope_scaling shift_attn mixture_of_depths block_diag_attn model_max_length", refused(_WINDOW)),
    "moe_aux_loss_coef": refused(_LOSS),
    "train_from_scratch": refused("training starts from the base's weights"),
    "flash_attn": worked("training.attn_implementation"),
    **each("upcast_layernorm upcast_lmhead_output", refused("the base has one precision: training.dtype")),
    **each("hf_hub_token ms_hub_token om_hub_token cache_dir", idle("the Hub's own environment variables say that")),
    **each("quantization_bit quantization_method", worked("quantization")),
    "quantization_type": worked("quantization.bnb_4bit_quant_type"),
    "double_quantization": worked("quantization.bnb_4bit_use_double_quant"),
    **each("quantization_device_map device_map", idle(_MACHINE, "auto")),
    "compute_dtype": refused("the precision is told by bf16"),
    **each("use_unsloth use_unsloth_gc enable_liger_kernel use_v1_kernels", idle(NUMBERS)),
    "use_reentrant_gc": idle("gradients are the same either way", True),
    "disable_gradient_checkpointing": worked("training.gradient_checkpointing"),
    "use_kv_cache": idle(_ANSWERS, True),
    "offload_folder": idle(_MACHINE, "offload"),
    **each("low_cpu_mem_usage print_param_status", idle(_MACHINE, True)),
    **each(
        "image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels video_min_pixels "
        "video_fps video_maxlen use_audio_in_video audio_sampling_rate media_dir",
        idle(VISION),
    ),
    **each("freeze_vision_tower freeze_multi_modal_projector", refused(VISION, True)),
    "freeze_language_model": refused(VISION),
    **each(
        "kt_cpu_activation kt_weight_path kt_non_expert_weight_path kt_expert_checkpoint_path kt_use_lora_experts "
        "kt_lora_expert_num kt_lora_expert_intermediate_size kt_config",
        refused("KTransformers is no part of loradock"),
    ),
    "use_kt": refused("KTransformers is no part of loradock"),
}

_METHOD: Final[Mapping[str, Rule]] = {
    "stage": worked("the stage that is trained: sft"),
    "finetuning_type": worked("method.type"),
    "lora_rank": worked("method.r"),
    **each("lora_alpha lora_dropout lora_target use_dora use_rslora", worked("method")),
    **each("additional_target oft_target oft_rank oft_block_size module_dropout", worked("method")),
    **each("pissa_init pissa_iter", worked("method.init_lora_weights")),
    "pissa_convert": idle("a PiSSA adapter is kept as the LoRA adapter that it amounts to"),
    "create_new_adapter": idle("training starts a new adapter"),
    "loraplus_lr_ratio": refused(RATES),
    "loraplus_lr_embedding": refused(RATES, 1e-6),
    **each("freeze_trainable_layers freeze_trainable_modules freeze_extra_modules", idle(_WEIGHTS, 2, "all")),
    "use_llama_pro": refused(_WEIGHTS),
    **each("use_galore use_apollo use_badam use_adam_mini use_muon", refused(OPTIMIZER)),
    **each(
        "galore_target galore_rank galore_update_interval galore_scale galore_proj_type galore_layerwise "
        "apollo_target apollo_rank apollo_update_interval apollo_scale apollo_proj apollo_proj_type apollo_scale_type "
        "apollo_layerwise apollo_scale_front "
        "badam_mode badam_start_block badam_switch_mode badam_switch_interval badam_update_ratio badam_mask_mode "
        "badam_verbose",
        idle(OPTIMIZER),
    ),
    **each("use_dft_loss use_asft_loss use_eaft_loss", refused(_LOSS)),
    **each("asft_alpha eaft_alpha", idle(_LOSS, 0.1, 1.0)),
    "pure_bf16": worked("training.dtype"),
    **each("use_mca use_megatron_bridge use_hyper_parallel", refused(DEVICES)),
    **each("megatron_bridge_args hyper_parallel_args", idle(DEVICES)),
    "hyper_parallel_cp_size": idle(DEVICES, 1),
    **each(
        "pref_beta pref_ftx pref_bco_weight pref_loss dpo_label_smoothing kto_chosen_weight kto_rejected_weight "
        "simpo_gamma ppo_buffer_size ppo_epochs ppo_score_norm ppo_target ppo_whiten_rewards ref_model "
        "ref_model_adapters ref_model_quantization_bit reward_model reward_model_adapters "
        "reward_model_quantization_bit reward_model_type ld_alpha",
        idle(PREFERENCE),
    ),
}

_DATA: Final[Mapping[str, Rule]] = {
    **each("dataset dataset_dir", worked("data.path")),
    "template": worked("data.template"),
    "cutoff_len": to("training.max_length"),
    "max_samples": worked("data"),
    "val_size": worked("data.heldout"),
    "train_on_prompt": worked("training.completion_only_loss"),
    **each("packing neat_packing", worked("training.packing")),
    "eval_dataset": refused("what only measures is held out of the data itself: val_size"),
    "eval_on_each_dataset": refused("what only measures is held out of the data itself: val_size"),
    "mask_history": refused("every assistant turn is trained on"),
    "mix_strategy": refused("data sets are joined, each whole", "concat"),
    "interleave_probs": refused("data sets are joined, each whole"),
    "streaming": refused(WHOLE),
    "buffer_size": idle(WHOLE, 16384),
    "tokenized_path": refused("rows are read from their files, and kept nowhere"),
    "data_shared_file_system": idle(READ),
    **each("overwrite_cache preprocessing_num_workers", idle(READ)),
    "preprocessing_batch_size": idle(READ, 1000),
    "ignore_pad_token_for_loss": refused("padding is never trained on", True),
    **each("tool_format default_system preserve_thinking", refused(TEMPLATE)),
    "enable_thinking": idle(TEMPLATE, True),
    "eval_num_beams": idle(EVALUATION),
    "disable_shuffling": refused(SHUFFLED),
}

_TRAINING: Final[Mapping[str, Rule]] = {
    "do_train": worked("the stage that is trained: sft"),
    **each("do_eval do_predict predict_with_generate compute_accuracy", idle(EVALUATION)),
    "per_device_train_batch_size": to("training.per_device_train_batch_size"),
    "gradient_accumulation_steps": to("training.gradient_accumulation_steps"),
    "num_train_epochs": worked("training.num_train_epochs"),
    "max_steps": worked("training.max_steps"),
    "learning_rate": to("training.learning_rate"),
    "lr_scheduler_type": to("training.lr_scheduler_type"),
    "lr_scheduler_kwargs": to("training.lr_scheduler_kwargs"),
    **each("warmup_steps warmup_ratio", worked("training.warmup_steps")),
    "optim": to("training.optim"),
    **each("optim_args optim_target_modules", refused(OPTIMIZER)),
    "weight_decay": to("training.weight_decay"),
    "adam_beta1": to("training.adam_beta1"),
    "adam_beta2": to("training.adam_beta2"),
    "adam_epsilon": to("training.adam_epsilon"),
    "max_grad_norm": to("training.max_grad_norm"),
    "neftune_noise_alpha": to("training.neftune_noise_alpha"),
    "label_smoothing_factor": refused(_LOSS, 0),
    **each("bf16 fp16", worked("training.dtype")),
    **each(
        "fp8 fp8_backend fp8_enable_fsdp_float8_all_gather", refused("the base's precision is training.dtype", "auto")
    ),
    **each("bf16_full_eval fp16_full_eval", idle(EVALUATION)),
    "tf32": idle("products of float32 are as exact as PyTorch's default makes them"),
    "gradient_checkpointing": worked("training.gradient_checkpointing"),
    "gradient_checkpointing_kwargs": idle("gradients are the same either way"),
    "train_sampling_strategy": idle(SHUFFLED, "random"),
    **each("group_by_length", idle(SHUFFLED)),
    "length_column_name": idle(SHUFFLED, "length"),
    "seed": to("seed"),
    "data_seed": refused("one seed holds for weights and rows: seed"),
    **each("full_determinism sortish_sampler", idle("the same recipe, data and seed give the same adapter on a CPU")),
    "average_tokens_across_devices": idle(DEVICES, True),
    # Evaluation and checkpoints
    **each("eval_strategy eval_steps", worked("training.eval_steps")),
    "early_stopping_steps": worked("training.early_stopping_patience"),
    "load_best_model_at_end": to("training.load_best_model_at_end"),
    "metric_for_best_model": refused("the best evaluation is the one of the lowest held-out loss", "loss", "eval_loss"),
    "greater_is_better": refused("the best evaluation is the one of the lowest held-out loss"),
    **each("eval_on_start", idle("the held-out loss is measured before and after in any case", True)),
    **each(
        "eval_delay per_device_eval_batch_size eval_accumulation_steps prediction_loss_only include_for_metrics "
        "batch_eval_metrics eval_use_gather_object label_names",
        idle(EVALUATION, 0),
    ),
    "eval_do_concat_batches": idle(EVALUATION, True),
    "save_steps": worked("training.save_steps"),
    "save_strategy": idle(KEPT, "steps"),
    **each(
        "output_dir overwrite_output_dir save_only_model save_on_each_node save_total_limit enable_jit_checkpoint "
        "save_safetensors",
        idle(KEPT),
    ),
    **each(
        "push_to_hub hub_token hub_private_repo hub_model_id hub_always_push hub_revision", idle("nothing is uploaded")
    ),
    "hub_strategy": idle("nothing is uploaded", "every_save"),
    **each("resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint", refused(RESUME)),
    # Logging
    "logging_steps": to("training.logging_steps"),
    **each("logging_strategy", idle(MLFLOW, "steps")),
    **each("logging_nan_inf_filter log_on_each_node skip_memory_metrics", idle(MLFLOW, True)),
    **each("report_to include_num_input_tokens_seen", idle(MLFLOW, "none", "no")),
    **each("log_level log_level_replica project", idle(MLFLOW, "passive", "warning", "huggingface")),
    **each(
        "logging_first_step logging_dir run_name trackio_space_id trackio_bucket_id trackio_static_space_id "
        "disable_tqdm plot_loss include_effective_tokens_per_second use_swanlab swanlab_workspace swanlab_run_name "
        "swanlab_api_key swanlab_logdir swanlab_lark_webhook_url swanlab_lark_secret",
        idle(MLFLOW),
    ),
    **each("swanlab_project swanlab_mode", idle(MLFLOW, "llamafactory", "cloud")),
    # How fast, and on what
    **each(
        "sequence_parallel tensor_model_parallel_size pipeline_model_parallel_size context_parallel_size "
        "expert_model_parallel_size use_distributed_optimizer apply_rope_fusion bias_activation_fusion "
        "overlap_grad_reduce overlap_param_gather moe_token_dispatcher_type moe_grouped_gemm recompute_granularity "
        "use_packed_sequences mixed_precision export_hf_on_finish",
        refused("Megatron is no part of loradock"),
    ),
    "fsdp_transformer_layer_cls_to_wrap": idle(DEVICES),
    **each("torch_compile torch_compile_backend torch_compile_mode", idle(NUMBERS)),
    **each("use_liger_kernel liger_kernel_config use_cache", idle(NUMBERS)),
    **each(
        "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
        "dataloader_multiprocessing_context dataloader_in_order remove_unused_columns",
        idle(_MACHINE, True, 0),
    ),
    "dataloader_drop_last": refused("the last batch of an epoch is trained on like the others"),
    "auto_find_batch_size": idle("`loradock plan` says what fits"),
    **each("torch_empty_cache_steps use_cpu debug", idle(_MACHINE)),
    **each(
        "fsdp fsdp_config deepspeed accelerator_config parallelism_config ddp_find_unused_parameters "
        "ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout ray_init_kwargs master_addr "
        "master_port",
        idle(DEVICES),
    ),
    **each("local_rank ray_num_workers", idle(DEVICES, -1, 1)),
    **each(
        "enable_torch_profiler profiler_output_dir profiler_record_shapes profiler_profile_memory profiler_with_stack "
        "profile_modules profiler_wait_steps profiler_warmup_steps profiler_active_steps profiler_repeat",
        idle(_MACHINE, True, 1),
    ),
}

_OTHER: Final[Mapping[str, Rule]] = {
    **each(
        "generation_max_length generation_num_beams generation_config do_sample temperature top_p top_k num_beams "
        "max_length max_new_tokens repetition_penalty length_penalty skip_special_tokens infer_backend infer_dtype "
        "vllm_maxlen vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank vllm_config sglang_maxlen sglang_mem_fraction "
        "sglang_tp_size sglang_config sglang_lora_backend",
        idle(_ANSWERS),
    ),
    **each(
        "export_dir export_size export_device export_quantization_bit export_quantization_dataset "
        "export_quantization_nsamples export_quantization_maxlen export_legacy_format export_hub_model_id",
        idle(_EXPORT),
    ),
}

KEYS: Final[Mapping[str, Rule]] = {**_BASE, **_METHOD, **_DATA, **_TRAINING, **_OTHER}

INFO: Final[Mapping[str, Rule]] = {
    **each("file_name hf_hub_url", worked("data.path")),
    **each("ms_hub_url om_hub_url", idle("the Hub or the file is read")),
    **each("script_url cloud_file_name", refused("rows are read from files and from the Hub")),
    **each("formatting columns tags", worked("data.format")),
    "subset": worked("data.subset"),
    "split": worked("data.split"),
    "ranking": refused(PREFERENCE),
    "folder": refused("files of a data set on the Hub cannot be chosen: download them"),
    "num_samples": refused("data sets are joined, each whole"),
    "file_sha1": idle(READ),
}
"""The keys of one entry of dataset_info.json."""
ALPACA_COLUMNS: Final[Mapping[str, str]] = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "system": "system",
}
CHAT_COLUMNS: Final[Mapping[str, str]] = {"messages": "messages", "system": "system"}
CHAT_TAGS: Final[Mapping[str, str]] = {"role_tag": "role", "content_tag": "content"}
"""Their names of columns and tags, and ours."""

DEFAULTS: Final[Mapping[str, Any]] = {
    "data.heldout": 0.0,
    "training.num_train_epochs": 3.0,
    "training.learning_rate": 5e-5,
    "training.per_device_train_batch_size": 8,
    "training.max_length": 2048,
    "training.optim": "adamw_torch_fused",
    "training.lr_scheduler_type": "linear",
    "training.load_best_model_at_end": False,
}
"""The defaults of llamafactory.hparams.data_args and of transformers' TrainingArguments, where ours are others."""
