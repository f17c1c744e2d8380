"""Every key of an Axolotl recipe, and what becomes of it.

The keys are those of axolotl.utils.schemas (0.13) and of the recipes under Axolotl's examples/, older ones included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from loradock.trainer.dialects.rules import (
    CUT,
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

NAME: Final = "Axolotl"
_ATTENTION: Final = "attention is chosen by attn_implementation: eager, sdpa, flash_attention_2 or flash_attention_3"
_FORM: Final = "it says how the work is laid out in memory, which training.gradient_checkpointing decides here"
_MACHINE: Final = "the machine and its memory are no part of a recipe"
_QUANTIZED: Final = (
    "a base is held in its own precision, or by bitsandbytes in 4 or 8 bits (load_in_4bit, load_in_8bit)"
)
_SCHEDULE: Final = "there is no such schedule here: training.lr_scheduler_type lists what there is"
_WEIGHTS: Final = "which weights are trained is told by method.target_modules and method.modules_to_save"

KEYS: Final[Mapping[str, Rule]] = {
    # The base
    "base_model": worked("base"),
    **each("revision_of_model model_revision", worked("base")),
    **each("base_model_config tokenizer_config", worked("base")),
    **each("model_type type_of_model", worked("base")),
    "trust_remote_code": idle(REMOTE_CODE),
    **each("tokenizer_type tokenizer_use_fast tokenizer_legacy tokenizer_save_jinja_files", idle(TOKENIZER, True)),
    "tokenizer_use_mistral_common": refused(TOKENIZER),
    **each("processor_type processor_kwargs image_size image_resize_algorithm role_boundaries", refused(VISION)),
    "freeze_mm_modules": refused(VISION),
    **each("cls_model_config num_labels", refused("only causal language models are trained")),
    **each("model_config overrides_of_model_config", refused("the base's configuration stays as it is")),
    **each("model_kwargs overrides_of_model_kwargs rope_scaling", refused("the base's configuration stays as it is")),
    "reinit_weights": refused("training starts from the base's weights"),
    **each(
        "is_falcon_derived_model is_llama_derived_model is_mistral_derived_model is_qwen_derived_model",
        idle("the base's own configuration says what it is", True),
    ),
    "base_model_ignore_patterns": idle("a base is read from its safetensors files alone"),
    **each("special_tokens tokens", worked("the base's own tokens")),
    **each("added_tokens_overrides fix_untrained_tokens", refused(VOCABULARY)),
    **each("resize_token_embeddings_to_32x mean_resizing_embeddings shrink_embeddings", idle(VOCABULARY)),
    # How the base is held
    "load_in_4bit": worked("quantization.load_in_4bit"),
    "load_in_8bit": worked("quantization.load_in_8bit"),
    "bnb_config_kwargs": worked("quantization"),
    **each("bf16 bfloat16 fp16 float16 float32", worked("training.dtype")),
    "torch_dtype": worked("training.dtype"),
    "tf32": idle("products of float32 are exact, or as exact as PyTorch's default makes them", "auto"),
    **each("gptq gptq_groupsize gptq_model_v1 gptq_disable_exllama", refused(_QUANTIZED)),
    **each("model_quantization_config model_quantization_config_kwargs use_onebitllms", refused(_QUANTIZED)),
    **each("quantize_moe_experts llama4_linearized_experts qat quantization llmcompressor", refused(_QUANTIZED)),
    **each("fp8 fp8_enable_fsdp_float8_all_gather nvfp4_merge_aware dsv4_fp4_grouped_mode", refused(_QUANTIZED)),
    **each(
        "embeddings_skip_upcast fp32_norms fp32_norm_classes", refused("the base has one precision: training.dtype")
    ),
    # The method
    "adapter": worked("method.type"),
    "lora_r": to("method.r"),
    "lora_alpha": to("method.lora_alpha"),
    "lora_dropout": to("method.lora_dropout"),
    "lora_fan_in_fan_out": to("method.fan_in_fan_out"),
    **each("lora_target_modules lora_target_linear", worked("method.target_modules")),
    "lora_target_parameters": worked("method.target_parameters"),
    "lora_modules_to_save": to("method.modules_to_save"),
    "lora_exclude_modules": to("method.exclude_modules"),
    "lora_rank_pattern": to("method.rank_pattern"),
    "lora_alpha_pattern": to("method.alpha_pattern"),
    "peft_layers_to_transform": to("method.layers_to_transform"),
    "peft_layers_pattern": to("method.layers_pattern"),
    "peft_layer_replication": to("method.layer_replication"),
    "peft_use_dora": to("method.use_dora"),
    "peft_use_rslora": to("method.use_rslora"),
    "peft_init_lora_weights": to("method.init_lora_weights"),
    "peft_trainable_token_indices": to("method.trainable_token_indices"),
    "peft_ensure_weight_tying": to("method.ensure_weight_tying"),
    "peft_autocast_adapter_dtype": idle("an adapter is trained in float32", True),
    "peft": worked("method.init_lora_weights"),
    "lora_model_dir": refused("training starts a new adapter: " + RESUME),
    **each("loraplus_lr_ratio embedding_lr embedding_lr_scale lr_groups", refused(RATES)),
    "loraplus_lr_embedding": refused(RATES, 1e-6),
    **each(
        "relora relora_steps relora_warmup_steps relora_anneal_steps relora_prune_ratio relora_cpu_offload "
        "jagged_restart_steps jagged_restart_warmup_steps jagged_restart_anneal_steps",
        refused("an adapter is trained in one piece, without restarts"),
    ),
    "relora_prune_method": idle("an adapter is trained in one piece, without restarts", "magnitude"),
    **each("unfrozen_parameters", refused(_WEIGHTS)),
    **each("lisa_n_layers lisa_step_interval", refused(_WEIGHTS)),
    "lisa_layers_attribute": idle(_WEIGHTS, "model.layers"),
    **each("merge_lora lora_on_cpu qlora_sharded_model_loading", idle("merging is no part of training")),
    "merge_method": idle("merging is no part of training", "memory_efficient"),
    "full_finetune": worked("method.type"),
    # The data
    "datasets": worked("data"),
    "val_set_size": worked("data.heldout"),
    "test_datasets": refused("what only measures is held out of the data itself: val_set_size"),
    **each("chat_template default_system_message", worked("the base's own chat template")),
    **each("chat_template_jinja chat_template_kwargs", refused(TEMPLATE)),
    "eot_tokens": idle("where a turn ends is told by the base's own chat template"),
    "train_on_inputs": worked("training.completion_only_loss"),
    "sequence_len": to("training.max_length"),
    "excess_length_strategy": refused(CUT, "drop"),
    "sample_packing": to("training.packing"),
    "eval_sequence_len": refused("the held-out rows are measured at the length of the others"),
    **each("min_sample_len", refused("short rows are trained on like others")),
    "max_prompt_len": idle(CUT),
    "dataset_exact_deduplication": refused("exact duplicates are counted, and stay: take them out of the file"),
    **each("dataset_shard_num dataset_shard_idx", refused(WHOLE)),
    **each("pretraining_dataset streaming", refused(WHOLE)),
    "skip_prepare_dataset": refused(VISION),
    "streaming_multipack_buffer_size": idle(WHOLE, 10000),
    **each("pretrain_multipack_buffer_size pretraining_sample_concatenation", refused(WHOLE)),
    "pretrain_multipack_attn": idle(WHOLE, True),
    **each("curriculum_sampling sample_packing_sequentially", refused(SHUFFLED)),
    **each("group_by_length shuffle_before_merging_datasets", idle(SHUFFLED)),
    "shuffle_merged_datasets": idle(SHUFFLED, True),
    **each(
        "use_pose pose_split_on_token_ids pose_max_context_len pose_num_chunks", refused("positions stay as they are")
    ),
    **each("pad_to_sequence_len pad_to_multiple_of", idle("padding is never trained on, and left out where it can be")),
    **each(
        "eval_sample_packing sample_packing_eff_est sample_packing_seq_len_multiplier sample_packing_mp_start_method "
        "multipack_real_batches batch_flattening total_num_tokens total_supervised_tokens",
        idle("how rows are laid into batches is worked out anew"),
    ),
    "sample_packing_group_size": idle("how rows are laid into batches is worked out anew", 100000),
    "sample_packing_bin_size": idle("how rows are laid into batches is worked out anew", 200),
    "max_packed_sequence_len": refused("use sample_packing with sequence_len"),
    **each(
        "dataset_prepared_path dataset_processes dataset_num_proc dataset_keep_in_memory num_dataset_shards_to_save "
        "is_preprocess preprocess_iterable",
        idle(READ),
    ),
    **each("dataloader_pin_memory dataloader_num_workers dataloader_prefetch_factor", idle(NUMBERS, True, 0)),
    "dataloader_drop_last": refused("the last batch of an epoch is trained on like the others"),
    "remove_unused_columns": idle("columns that no key names are not read", True),
    # The training
    "num_epochs": worked("training.num_train_epochs"),
    "max_steps": worked("training.max_steps"),
    "micro_batch_size": to("training.per_device_train_batch_size"),
    "gradient_accumulation_steps": to("training.gradient_accumulation_steps"),
    "batch_size": worked("training.gradient_accumulation_steps"),
    "eval_batch_size": idle("the held-out loss does not depend on it"),
    "auto_find_batch_size": idle("`loradock plan` says what fits"),
    "learning_rate": to("training.learning_rate"),
    "optimizer": to("training.optim", adamw_hf="adamw_torch"),
    **each("optim_args optim_target_modules adam_beta3 adam_epsilon2", refused(OPTIMIZER)),
    **each("dion_lr dion_momentum", refused(OPTIMIZER)),
    **each("dion_rank_fraction dion_rank_multiple_of", idle(OPTIMIZER, 1, 1.0)),
    **each(
        "qgalore_rank qgalore_update_proj_gap qgalore_scale qgalore_proj_type qgalore_proj_quant qgalore_proj_bits "
        "qgalore_proj_group_size qgalore_cos_threshold qgalore_gamma_proj qgalore_queue_size torchdistx_path",
        idle(OPTIMIZER, True),
    ),
    "weight_decay": to("training.weight_decay"),
    "adam_beta1": to("training.adam_beta1"),
    "adam_beta2": to("training.adam_beta2"),
    **each("adam_epsilon adam_eps", to("training.adam_epsilon")),
    "max_grad_norm": to("training.max_grad_norm"),
    "lr_scheduler": to("training.lr_scheduler_type"),
    "lr_scheduler_kwargs": to("training.lr_scheduler_kwargs"),
    "cosine_min_lr_ratio": worked("training.lr_scheduler_kwargs"),
    **each("cosine_constant_lr_ratio", refused(_SCHEDULE, 0)),
    **each("lr_quadratic_warmup lr_div_factor", refused(_SCHEDULE)),
    "eta_min": idle(f"{NAME} has no such key itself, and leaves it out"),
    **each("warmup_steps warmup_ratio", worked("training.warmup_steps")),
    **each("neftune_noise_alpha noisy_embedding_alpha", to("training.neftune_noise_alpha")),
    "seed": to("seed"),
    **each("flash_attention sdp_attention eager_attention attn_implementation", worked("training.attn_implementation")),
    **each("xformers_attention flex_attention sage_attention flash_optimum sdpa_varlen", idle(_ATTENTION)),
    **each("gemma4_hybrid_attn_impl large_head_attention flash_attn_d512", idle(_ATTENTION)),
    "s2_attention": refused(_ATTENTION),
    **each("scaling_softmax scaling_softmax_factor scaling_softmax_bias", refused("attention stays the base's own")),
    "gradient_checkpointing": worked("training.gradient_checkpointing"),
    "gradient_checkpointing_kwargs": idle("gradients are the same either way"),
    **each("selective_checkpointing activation_offloading layer_offloading tiled_mlp", idle(_FORM)),
    "tiled_mlp_num_shards": idle(_FORM),
    "tiled_mlp_use_original_mlp": idle(_FORM, True),
    **each("use_eaft center_rewards_coefficient trainer_cls", refused("the loss is that of the next token")),
    **each("eaft_alpha eaft_k", idle("the loss is that of the next token", 1.0, 20)),
    "diffusion": refused("the loss is that of the next token"),
    # Evaluation, early end, checkpoints
    **each("evals_per_epoch eval_steps eval_strategy evaluation_strategy", worked("training.eval_steps")),
    "early_stopping_patience": worked("training.early_stopping_patience"),
    "load_best_model_at_end": to("training.load_best_model_at_end"),
    "metric_for_best_model": refused("the best evaluation is the one of the lowest held-out loss", "loss", "eval_loss"),
    "greater_is_better": refused("the best evaluation is the one of the lowest held-out loss"),
    **each(
        "do_causal_lm_eval eval_causal_lm_metrics do_bench_eval bench_dataset bench_split eval_max_new_tokens "
        "generate_samples",
        idle(EVALUATION),
    ),
    "eval_table_size": idle(EVALUATION, 0),
    **each("num_generation_samples generation_max_new_tokens generation_temperature", idle(EVALUATION, 3, 50, 0.7)),
    **each("generation_top_p generation_top_k generation_prompt_ratio", idle(EVALUATION, 0.5)),
    "generation_do_sample": idle(EVALUATION, True),
    **each("loss_watchdog_threshold loss_watchdog_patience", idle("a run stops by itself when it diverges")),
    "save_steps": worked("training.save_steps"),
    **each("saves_per_epoch save_strategy save_total_limit save_only_model save_first_step", idle(KEPT)),
    "save_safetensors": idle(KEPT, True),
    "dynamic_checkpoint": idle(KEPT),
    "output_dir": idle(KEPT),
    **each("hub_model_id hub_strategy hub_revision push_dataset_to_hub", idle("nothing is uploaded")),
    "resume_from_checkpoint": refused(RESUME),
    "auto_resume_from_checkpoints": idle(RESUME),
    # Logging
    "logging_steps": to("training.logging_steps"),
    **each("include_tokens_per_second use_tensorboard use_mlflow", idle(MLFLOW)),
    "include_tkps": idle(MLFLOW, True),
    **each(
        "use_wandb wandb_name wandb_run_id wandb_mode wandb_project wandb_entity wandb_watch wandb_log_model "
        "mlflow_tracking_uri mlflow_experiment_name mlflow_run_name hf_mlflow_log_artifacts "
        "use_comet comet_api_key comet_workspace comet_project_name comet_experiment_key comet_mode comet_online "
        "comet_experiment_config use_trackio trackio_project_name trackio_run_name trackio_space_id "
        "use_swanlab swanlab_project swanlab_workspace swanlab_experiment_name swanlab_description swanlab_mode "
        "swanlab_log_completions swanlab_log_model swanlab_completion_log_interval swanlab_completion_max_buffer "
        "use_otel_metrics project_name",
        idle(MLFLOW),
    ),
    "otel_metrics_host": idle(MLFLOW, "localhost"),
    "otel_metrics_port": idle(MLFLOW, 8000),
    # How fast, and on what
    "plugins": worked("nothing: kernels and logging"),
    **each(
        "lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel use_kernels fused_attn_kernel "
        "chunked_cross_entropy chunked_cross_entropy_num_chunks cut_cross_entropy "
        "liger_rope liger_rms_norm liger_rms_norm_gated liger_layer_norm liger_swiglu liger_glu_activation "
        "liger_cross_entropy liger_fused_linear_cross_entropy "
        "flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_mlp flex_attn_compile_kwargs "
        "torch_compile torch_compile_backend torch_compile_mode torch_compile_options deepcompile "
        "experts_implementation use_scattermoe use_sonicmoe use_dsv4_kernels use_glm_dsa_kernels",
        idle(NUMBERS),
    ),
    "liger_use_token_scaling": refused("every completion token weighs the same in the loss"),
    **each(
        "fsdp fsdp_config fsdp_version fsdp_final_state_dict_type deepspeed ddp ddp_timeout ddp_bucket_cap_mb "
        "ddp_broadcast_buffers ddp_find_unused_parameters dp_shard_size dp_replicate_size "
        "use_ray ray_run_name resources_per_worker accelerator_config heads_k_stride ring_attn_func "
        "expert_parallel_num_nvl_bytes expert_parallel_token_capacity",
        idle(DEVICES),
    ),
    **each("tensor_parallel_size context_parallel_size sequence_parallel_degree", idle(DEVICES, 1)),
    **each("expert_parallel_size ray_num_workers world_size", idle(DEVICES, 1)),
    **each(
        "device device_map local_rank max_memory gpu_memory_limit low_cpu_mem_usage hf_use_auth_token debug strict "
        "gc_steps torch_empty_cache_steps gc_collect_steps profiler_steps axolotl_config_path",
        idle(_MACHINE),
    ),
    "profiler_steps_start": idle(_MACHINE, 0),
    "experimental_skip_move_to_device": idle(_MACHINE, True),
    **each(
        "gradio_title gradio_share gradio_server_name gradio_server_port gradio_max_new_tokens gradio_temperature",
        idle("it is about asking the model, not training it"),
    ),
    # Other trainings
    **each(
        "rl trl vllm ebft reward_model process_reward_model dpo_use_weighting dpo_label_smoothing dpo_use_liger_kernel "
        "dpo_padding_free dpo_loss_type dpo_loss_weights dpo_beta dpo_use_logits_to_keep dpo_generate_during_eval "
        "dpo_norm_loss precompute_ref_log_probs orpo_alpha simpo_gamma cpo_alpha kto_desirable_weight "
        "kto_undesirable_weight rl_beta rpo_alpha",
        refused(PREFERENCE),
    ),
}

_FIELDS: Final = "its columns are told by data.columns for chat, Alpaca and text rows only"

DATASET: Final[Mapping[str, Rule]] = {
    **each("path data_files ds_type revision", worked("data.path")),
    "split": worked("data.split"),
    "name": worked("data.subset"),
    "type": worked("data.format"),
    "field": worked("data.columns"),
    **each("field_messages message_field_role message_field_content", worked("data.columns")),
    "message_property_mappings": worked("data.columns"),
    "roles": worked("data.format"),
    "chat_template": worked("the base's own chat template"),
    "chat_template_jinja": refused(TEMPLATE),
    **each("roles_to_train train_on_eos train_on_eot", worked("training.completion_only_loss")),
    **each(
        "message_field_training message_field_training_detail", refused("every assistant turn is trained on, whole")
    ),
    "drop_system_message": refused("system messages are kept: take them out of the file"),
    **each("field_tools field_thinking template_thinking_key split_thinking", refused("a turn is a role and its text")),
    **each("field_system field_human field_model", refused(_FIELDS)),
    "conversation": refused(TEMPLATE),
    **each("input_format input_transform", refused("rows are read as they are in the file")),
    **each("shards shards_idx", refused(WHOLE)),
    "preprocess_shards": idle(READ),
    "trust_remote_code": refused("a data set's own code is never run"),
    **each("logprobs_field temperature", refused("the loss is that of the next token")),
    **each(
        "field_prompt field_chosen field_rejected field_completion field_label step_separator max_completion_length "
        "train_on_last_step_only",
        refused(PREFERENCE),
    ),
    **each("length sequence_length min_input_id max_input_id seed", refused("rows are never made up")),
}
"""The keys of one entry of `datasets`."""

TOKENS: Final[Mapping[str, Rule]] = {
    "pad_token": idle("padding is never trained on, and left out where it can be"),
    **each("bos_token eos_token unk_token", idle("the base's own tokens are used: these must be the same")),
    "additional_special_tokens": refused(VOCABULARY),
}
"""The keys of `special_tokens`."""

BNB: Final[Mapping[str, Rule]] = {
    "bnb_4bit_use_double_quant": to("quantization.bnb_4bit_use_double_quant"),
    "bnb_4bit_quant_type": to("quantization.bnb_4bit_quant_type"),
    "bnb_4bit_compute_dtype": to("quantization.bnb_4bit_compute_dtype"),
    **each("bnb_4bit_quant_storage", idle("how 4-bit weights are stored does not change what they stand for")),
    **each(
        "llm_int8_threshold llm_int8_skip_modules llm_int8_enable_fp32_cpu_offload llm_int8_has_fp16_weight",
        refused("the base's linear layers are held as bitsandbytes' defaults say"),
    ),
}
"""The keys of `bnb_config_kwargs`."""

DEFAULTS: Final[Mapping[str, Any]] = {
    "data.heldout": 0.0,
    "training.num_train_epochs": 1.0,
    "training.per_device_train_batch_size": 1,
    "training.max_length": 512,
    "training.optim": "adamw_torch_fused",
    "training.load_best_model_at_end": False,
}
"""Axolotl's defaults (axolotl.utils.schemas.config, .training), where ours are others."""
LORA_DEFAULTS: Final[Mapping[str, Any]] = {"method.lora_dropout": 0.0}
"""Axolotl's defaults for an adapter (axolotl.utils.schemas.peft); rank, alpha and targets have none."""
