"""Every field of TRL's configuration works, is refused in a sentence, or is TRL's own; generation keys too."""

from dataclasses import fields
from types import SimpleNamespace

import pytest

from heliostat.adapters.trl_settings import (
    HARMLESS,
    NEUTRAL,
    NOISY,
    OF_TRLS_OPTIMIZER,
    REPLACED,
    SHARED,
    TRUNCATING,
    check_generation,
    check_models_defaults,
)
from heliostat.config import ConfigError

OTHER_VALUES = {
    **{"loss_type": "grpo", "epsilon": 0.3, "epsilon_high": 0.3, "delta": 2.0, "importance_sampling_level": "sequence"},
    **{"scale_rewards": "none", "multi_objective_aggregation": "normalize_then_sum", "top_entropy_quantile": 0.5},
    **{"entropy_coef": 0.1, "use_adaptive_entropy": True, "entropy_coef_min": 0.1, "entropy_coef_max": 0.5},
    **{"entropy_coef_delta": 0.1, "entropy_target": 1.0, "sapo_temperature_neg": 2.0, "sapo_temperature_pos": 2.0},
    **{"vespo_k_pos": 1.0, "vespo_lambda_pos": 1.0, "vespo_k_neg": 1.0, "vespo_lambda_neg": 1.0},
    **{"off_policy_mask_threshold": 0.5, "use_bias_correction_kl": False, "label_smoothing_factor": 0.1},
    **{"vllm_importance_sampling_correction": False, "vllm_importance_sampling_mode": "token_mask"},
    **{"vllm_importance_sampling_cap": 2.0, "vllm_importance_sampling_clip_max": 2.0},
    **{"vllm_importance_sampling_clip_min": 0.5, "neftune_noise_alpha": 5.0},
    **{"top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "vllm_structured_outputs_regex": "a*"},
    **{"optim": "sgd", "optim_args": "a=1", "optim_target_modules": "all"},
}

OURS = {"beta", "disable_dropout", "generation_kwargs", "temperature", "learning_rate", "fp16", "fsdp", "deepspeed"}
"""Fields that the adapter reads; tested where they are used."""

TRLS_OWN = {
    *("output_dir", "per_device_train_batch_size", "num_train_epochs", "max_steps", "lr_scheduler_type"),
    *("lr_scheduler_kwargs", "warmup_steps", "gradient_accumulation_steps", "average_tokens_across_devices"),
    *("max_grad_norm", "bf16", "bf16_full_eval", "fp16_full_eval", "tf32", "activation_checkpointing"),
    *("activation_checkpointing_kwargs", "gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_compile"),
    *("torch_compile_backend", "torch_compile_mode", "use_liger_kernel", "liger_kernel_config", "use_cache"),
    *("torch_empty_cache_steps", "auto_find_batch_size", "logging_strategy", "logging_steps", "logging_first_step"),
    *("log_on_each_node", "logging_nan_inf_filter", "include_num_input_tokens_seen", "log_level", "log_level_replica"),
    *("disable_tqdm", "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id"),
    *("trackio_static_space_id", "eval_strategy", "eval_steps", "eval_delay", "per_device_eval_batch_size"),
    *("prediction_loss_only", "eval_on_start", "eval_do_concat_batches", "eval_use_gather_object"),
    *("eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics", "save_only_model", "save_strategy"),
    *("save_steps", "save_on_each_node", "save_total_limit", "enable_jit_checkpoint", "push_to_hub", "hub_token"),
    *("hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision", "load_best_model_at_end"),
    *("metric_for_best_model", "greater_is_better", "ignore_data_skip", "restore_callback_states_from_checkpoint"),
    *("full_determinism", "seed", "data_seed", "use_cpu", "accelerator_config", "parallelism_config"),
    *("dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order"),
    *("remove_unused_columns", "label_names", "train_sampling_strategy", "length_column_name"),
    *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend"),
    *("ddp_timeout", "fsdp_config", "debug", "skip_memory_metrics", "do_train", "do_eval", "do_predict"),
    *("resume_from_checkpoint", "local_rank", "model_init_kwargs", "trust_remote_code", "router_aux_loss_coef"),
    *("cast_lm_head_to_fp32", "num_generations", "num_generations_eval", "max_completion_length"),
    *("ds3_gather_for_generation", "shuffle_dataset", "pad_to_multiple_of", "generation_batch_size"),
    *("steps_per_generation", "chat_template_kwargs", "cache_implementation", "use_vllm", "vllm_mode"),
    *("vllm_model_impl", "vllm_enable_sleep_mode", "vllm_server_base_url", "vllm_server_host", "vllm_server_port"),
    *("vllm_server_timeout", "vllm_group_port", "vllm_gpu_memory_utilization", "vllm_max_model_length"),
    *("vllm_tensor_parallel_size", "num_iterations", "reward_weights", "mask_truncated_completions"),
    *("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps", "max_tool_calling_iterations"),
    *("log_completions", "log_multimodal", "num_completions_to_print", "log_unique_prompts"),
    *("log_completions_hub_repo", "use_transformers_continuous_batching"),
    *("transformers_continuous_batching_config", "use_transformers_paged"),
}
"""Fields that do in PMDTrainer what they do in GRPOTrainer."""


def config(folder, **changes):
    from heliostat.adapters.trl import PMDConfig

    small = {"num_generations": 4, "per_device_train_batch_size": 4, "bf16": False, "use_cpu": True, "report_to": []}
    return PMDConfig(output_dir=str(folder), **{**small, **changes})


@pytest.mark.peers
def test_every_field_of_trl_is_accounted_for():
    trl = pytest.importorskip("trl")
    refused = {*REPLACED, *TRUNCATING, *NOISY, *OF_TRLS_OPTIMIZER}
    kinds = [refused, set(SHARED), OURS, TRLS_OWN]
    names = {spec.name for spec in fields(trl.GRPOConfig)}
    assert names - set().union(*kinds) == set()
    assert set().union(*kinds) - names == set()
    assert sum(map(len, kinds)) == len(names)
    assert set(OTHER_VALUES) == refused


@pytest.mark.peers
@pytest.mark.parametrize("name", [*REPLACED, *TRUNCATING, *NOISY, *OF_TRLS_OPTIMIZER])
def test_a_setting_that_would_be_ignored_or_falsify_is_refused(tmp_path, name):
    pytest.importorskip("trl")
    with pytest.raises(ConfigError, match=f"^{name} = .*; leave it at"):
        config(tmp_path, **{name: OTHER_VALUES[name], "optimizer": "eva"})


@pytest.mark.peers
def test_trls_optimizer_settings_reach_ours_or_are_refused(tmp_path):
    pytest.importorskip("trl")
    made = config(tmp_path, optimizer="adamw", weight_decay=0.5, adam_beta2=0.9, adam_epsilon=1e-3, learning_rate=0.1)
    assert made.optimizer_section().settings == {"weight_decay": 0.5, "betas": (0.9, 0.9), "eps": 1e-3}
    assert made.optimizer_section().lr == 0.1
    both = config(tmp_path, optimizer="kronecker-sum", adam_beta1=0.5, adam_beta2=0.9)
    assert both.optimizer_section().settings == {"betas": (0.5, 0.9)}
    assert config(tmp_path, optim="sgd", weight_decay=0.1).optim == "sgd"  # TRL makes the optimizer
    with pytest.raises(ConfigError, match=r"adam_epsilon = 0.1 would be ignored: optimizer 'eva' has no eps"):
        config(tmp_path, optimizer="eva", adam_epsilon=0.1)
    with pytest.raises(ConfigError, match=r"weight_decay = 0.1 and optimizer_settings\['weight_decay'\]"):
        config(tmp_path, optimizer="sgd", weight_decay=0.1, optimizer_settings={"weight_decay": 0.2})
    with pytest.raises(ConfigError, match="top_p"):
        config(tmp_path, generation_kwargs='{"top_p": 0.1}')


CHANGING = {
    **{"do_sample": False, "num_beams": 4, "top_p": 0.5, "top_k": 50, "min_p": 0.1, "typical_p": 0.5, "top_h": 0.4},
    **{"epsilon_cutoff": 1e-3, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "min_new_tokens": 4},
    **{"bad_words_ids": [[1]], "suppress_tokens": [3], "sequence_bias": {(1,): -5.0}, "guidance_scale": 2.0},
    **{"logit_bias": {1: 100}, "presence_penalty": 0.5, "allowed_token_ids": [1], "ignore_eos": True, "n": 2},
    **{"temperature": 0.3, "something_new": 1},
}


@pytest.mark.parametrize("key", CHANGING)
def test_generation_that_samples_another_policy_is_refused(key):
    with pytest.raises(ConfigError, match=f"generation_kwargs\\['{key}'\\]"):
        check_generation({key: CHANGING[key]}, temperature=1.0)


def test_generation_that_samples_the_policy_is_not():
    check_generation(None, 1.0)
    check_generation(dict.fromkeys(HARMLESS, 1), 1.0)
    check_generation({key: value for key, values in NEUTRAL.items() for value in values[:1]}, 1.0)
    check_generation(dict.fromkeys(NEUTRAL), 1.0)
    check_generation({"temperature": 0.7}, 0.7)


@pytest.mark.parametrize("key", sorted(set(CHANGING) & {"no_repeat_ngram_size", "suppress_tokens", "typical_p"}))
def test_a_model_whose_own_settings_sample_another_policy_is_refused(key):
    with pytest.raises(ConfigError, match=f"model.generation_config.{key} = None"):
        check_models_defaults(SimpleNamespace(**{key: CHANGING[key]}), {})
    check_models_defaults(SimpleNamespace(**{key: CHANGING[key]}), {key: NEUTRAL[key][0] if NEUTRAL[key] else [0]})
