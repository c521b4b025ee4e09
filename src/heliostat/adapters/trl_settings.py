"""TRL's settings: those that the objective or the optimizer replaces, and those that sample from another policy.

Everything that is not named here is TRL's own and works as TRL says.

Left out: TRL itself, which this module does not import, and reading a configuration (``trl``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast

from heliostat.config import ConfigError, OptimizerSection
from heliostat.optim import optimizer_settings

REPLACED = (
    *("loss_type", "epsilon", "epsilon_high", "delta", "importance_sampling_level", "scale_rewards"),
    *("multi_objective_aggregation", "top_entropy_quantile", "entropy_coef", "use_adaptive_entropy"),
    *("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
    *("sapo_temperature_neg", "sapo_temperature_pos"),
    *("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
    *("off_policy_mask_threshold", "use_bias_correction_kl", "label_smoothing_factor"),
    *("vllm_importance_sampling_correction", "vllm_importance_sampling_mode", "vllm_importance_sampling_cap"),
    *("vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min"),
)
"""Settings of losses and advantages; the objective has its own."""

TRUNCATING = ("top_p", "top_k", "min_p", "repetition_penalty", "vllm_structured_outputs_regex")
"""Settings under which the sampled distribution is not the policy."""

NOISY = ("neftune_noise_alpha",)
"""Settings that put noise on log-probabilities, in training but not in sampling."""

OF_TRLS_OPTIMIZER = ("optim", "optim_args", "optim_target_modules")
"""Settings of the optimizer that TRL would build."""

SHARED = {
    **{"weight_decay": ("weight_decay",), "adam_epsilon": ("eps",)},
    **{"adam_beta1": ("betas", 0), "adam_beta2": ("betas", 1)},
}
"""TRL's optimizer settings that ours have too, by the key (and place) they have there."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **{"do_sample": (True,), "num_beams": (1,), "num_beam_groups": (1,), "n": (1,), "num_return_sequences": (1,)},
    **{"top_p": (1.0,), "top_k": (0, -1), "min_p": (0.0,), "typical_p": (1.0,), "top_h": ()},
    **{"epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,), "penalty_alpha": (0.0,), "diversity_penalty": (0.0,)},
    **{"repetition_penalty": (1.0,), "encoder_repetition_penalty": (1.0,), "length_penalty": (1.0,)},
    **{"presence_penalty": (0.0,), "frequency_penalty": (0.0,), "guidance_scale": (1.0,)},
    **{"no_repeat_ngram_size": (0,), "encoder_no_repeat_ngram_size": (0,)},
    **{"min_length": (0,), "min_new_tokens": (0,), "min_tokens": (0,), "exponential_decay_length_penalty": ()},
    **{"bad_words_ids": (), "bad_words": (), "force_words_ids": (), "constraints": (), "sequence_bias": ()},
    **{"suppress_tokens": (), "begin_suppress_tokens": (), "forced_bos_token_id": (), "forced_eos_token_id": ()},
    **{"allowed_token_ids": (), "logit_bias": (), "logits_processors": (), "watermarking_config": ()},
    **{"structured_outputs": (), "guided_decoding": (), "ignore_eos": (False,), "remove_invalid_values": (False,)},
    **{"renormalize_logits": (False, True), "dola_layers": ()},
}
"""Keys of ``generate`` and vLLM that change the sampled policy, with the values (besides none) that change nothing."""

HARMLESS = frozenset(
    {
        *("max_new_tokens", "max_tokens", "max_length", "max_time", "stop", "stop_strings", "stop_token_ids", "seed"),
        *("use_cache", "cache_implementation", "cache_config", "disable_compile", "compile_config"),
        *("prefill_chunk_size", "include_stop_str_in_output", "detokenize", "skip_special_tokens"),
        *("spaces_between_special_tokens", "eos_token_id", "pad_token_id", "bos_token_id"),
    }
)
"""Keys of ``generate`` and vLLM that leave every token's probability alone."""

NOT_THE_POLICY = "changes the policy that was sampled, so log-probabilities would not be its own"


def refuse_changes(settings: Any, defaults: Mapping[str, Any], names: tuple[str, ...], reason: str) -> None:
    """Refuse settings that are not at their defaults, in one sentence each.

    Raises:
        ConfigError: one of ``names`` differs.
    """
    for name in names:
        value = getattr(settings, name)
        if value != defaults[name]:
            raise ConfigError(f"{name} = {getattr(value, 'value', value)!r} {reason}; leave it at {defaults[name]!r}")


def check_generation(given: Mapping[str, Any] | None, temperature: float) -> None:
    """Refuse ``generation_kwargs`` under which another policy than the trained one is sampled.

    Raises:
        ConfigError: a key changes the distribution, differs from ``temperature``, or is not known to leave it alone.
    """
    for key, value in (given or {}).items():
        name = f"generation_kwargs[{key!r}] = {value!r}"
        if key == "temperature":
            if value != temperature:
                raise ConfigError(f"{name} differs from temperature = {temperature}, at which log-probabilities are")
        elif key in NEUTRAL:
            if not _changes_nothing(key, value):
                raise ConfigError(f"{name} {NOT_THE_POLICY}; leave it out")
        elif key not in HARMLESS:
            raise ConfigError(f"{name} is not known to leave the sampled policy as it is; leave it out")


def check_models_defaults(config: Any, given: Mapping[str, Any]) -> None:
    """Refuse a model whose own generation settings change the sampled policy; ``given`` ones override those.

    Raises:
        ConfigError: a setting of ``config``, the model's ``generation_config``, changes the distribution.
    """
    for key in NEUTRAL:
        if given.get(key) is None and not _changes_nothing(key, getattr(config, key, None)) and key != "do_sample":
            raise ConfigError(
                f"the model's generation_config has {key} = {getattr(config, key)!r}, which {NOT_THE_POLICY}; set "
                f"model.generation_config.{key} = None"
            )


def section_of(settings: Any, defaults: Mapping[str, Any]) -> OptimizerSection:
    """Build a recipe's optimizer section from ``settings``: its own keys, and TRL's equivalents of them.

    Raises:
        ConfigError: unknown name or key, a setting of TRL's that it lacks, or one that is given twice.
    """
    keys = dict(settings.optimizer_settings or {})
    section = OptimizerSection(name=settings.optimizer, lr=settings.learning_rate, **keys)
    known = {spec.name: spec.default for spec in fields(cast("Any", optimizer_settings(section)))}
    taken: dict[str, Any] = {}
    for name, (key, *place) in SHARED.items():
        value = getattr(settings, name)
        if value == defaults[name]:
            continue
        if key not in known:
            raise ConfigError(f"{name} = {value!r} would be ignored: optimizer '{settings.optimizer}' has no {key}")
        if key in keys:
            raise ConfigError(f"{name} = {value!r} and optimizer_settings[{key!r}] say the same thing: give one")
        if place:
            taken[key] = tuple(value if i == place[0] else old for i, old in enumerate(taken.get(key, known[key])))
        else:
            taken[key] = value
    return OptimizerSection(name=settings.optimizer, lr=settings.learning_rate, **keys, **taken)


def _changes_nothing(key: str, value: Any) -> bool:
    return value is None or value in NEUTRAL[key] or (isinstance(value, list | dict) and not value)
