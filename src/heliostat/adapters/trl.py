"""TRL: ``PMDTrainer`` and ``PMDConfig``, GRPO's trainer with our objectives, anchor, normalisation and optimizers.

    config = PMDConfig(objective="pmd-mean", objective_settings={"tau": 0.2}, num_generations=8, ...)
    PMDTrainer(model=..., reward_funcs=..., args=config, train_dataset=...).train()

TRL keeps data, generation (transformers or vLLM), rewards, logging, checkpoints and distribution. Advantages and loss
are the objective's, and the loss's denominator is that of the whole optimizer step over all processes. The anchor
``old`` is there on every step: while the weights are those that sampled, it is the current log-probability itself, so
that every log-ratio is exactly 0; afterwards it is TRL's value from before the first update.

Left out: GRPO's own loss settings; setting one is an error, since it would be ignored. A prompt that
continues an answer is plain text with the prefix at its end: TRL puts a generation prompt after every chat.

Written for TRL 1.16, whose ``_compute_loss``, ``_prepare_inputs`` and ``_calculate_rewards`` are overridden; they are
private and may change.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from heliostat.adapters.padded import group_advantages, padded_loss, refuse_whole_groups
from heliostat.adapters.trl_settings import (
    NOISY,
    NOT_THE_POLICY,
    OF_TRLS_OPTIMIZER,
    REPLACED,
    SHARED,
    TRUNCATING,
    check_generation,
    check_models_defaults,
    refuse_changes,
    section_of,
)
from heliostat.config import ConfigError, ObjectiveSection, OptimizerSection
from heliostat.extras import named
from heliostat.objectives import Objective, build_objective
from heliostat.optim import BaseOptimizer, accumulate_in_float32, build_optimizer
from heliostat.optim.distributed.replicas import ALONE
from heliostat.types import mean_values

with named("heliostat.adapters.trl"):
    from trl import GRPOConfig, GRPOTrainer

OURS = (
    *("objective", "objective_settings", "optimizer", "optimizer_settings", "beta"),
    *("generation_kwargs", "temperature", "steps_per_generation", "gradient_accumulation_steps"),
)
"""Settings that are checked against others."""
FORWARD_INPUTS = (
    *("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles"),
    *("image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
)


@dataclass
class PMDConfig(GRPOConfig):  # type: ignore[misc]
    """GRPO's configuration, with an objective and optionally an optimizer of heliostat.

    Attributes:
        objective: an objective's name, as in a recipe.
        objective_settings: its keys, like ``{"tau": 0.2}``; on a command line as JSON.
        optimizer: an optimizer's name, as in a recipe; empty: TRL's ``optim``. ``learning_rate``, the schedule and
            ``max_grad_norm`` stay TRL's, and so do ``weight_decay``, ``adam_beta1``, ``adam_beta2`` and
            ``adam_epsilon`` where the optimizer has the like.
        optimizer_settings: its keys.

    Raises:
        ConfigError: an unknown objective, optimizer or key; a setting of TRL's that would be ignored or that samples
            another policy, in ``generation_kwargs`` too; ``steps_per_generation`` that is not a multiple of
            ``gradient_accumulation_steps``.
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "objective_settings", "optimizer_settings"]  # noqa: RUF012

    disable_dropout: bool = field(
        default=True, metadata={"help": "Dropout would make the log-ratio to the anchor noise."}
    )
    beta: float = field(default=0.0, metadata={"help": "Follows kl_ref of the objective."})
    objective: str = field(default="pmd-mean", metadata={"help": "Objective of heliostat.objectives."})
    objective_settings: dict | str | None = field(default=None, metadata={"help": "Keys of the objective."})  # type: ignore[type-arg]
    optimizer: str = field(default="", metadata={"help": "Optimizer of heliostat.optim; empty: `optim`."})
    optimizer_settings: dict | str | None = field(default=None, metadata={"help": "Keys of the optimizer."})  # type: ignore[type-arg]

    def __post_init__(self) -> None:
        defaults = self._defaults()
        refuse_changes(
            self, defaults, REPLACED, "would be ignored: the objective decides (objective, objective_settings)"
        )
        refuse_changes(self, defaults, TRUNCATING, NOT_THE_POLICY)
        refuse_changes(self, defaults, NOISY, "puts noise on log-probabilities, which the anchor's do not have")
        super().__post_init__()
        for name in ("objective_settings", "optimizer_settings"):
            if not isinstance(getattr(self, name), Mapping | None):
                raise ConfigError(f'{name} must be keys with values, as {{"tau": 0.2}}, got {getattr(self, name)!r}')
        check_generation(cast("dict[str, Any] | None", self.generation_kwargs), self.temperature)
        objective = self.build_objective()
        refuse_whole_groups(objective, "TRL")
        kl_ref = getattr(objective, "kl_ref", 0.0)
        if self.beta not in (0.0, kl_ref):
            raise ConfigError(
                f"beta = {self.beta} would be ignored: the penalty to a reference is the objective's kl_ref, set it in "
                "objective_settings"
            )
        self.beta = kl_ref  # makes TRL hold the reference and compute its log-probs
        if self.optimizer:
            refuse_changes(
                self, defaults, OF_TRLS_OPTIMIZER, f"would be ignored: optimizer = {self.optimizer!r} is set"
            )
            self.optimizer_section()
        elif self.optimizer_settings:
            raise ConfigError("optimizer_settings is set but no optimizer is named: set optimizer, for example 'adamw'")
        if self.steps_per_generation % self.gradient_accumulation_steps:
            raise ConfigError(
                f"steps_per_generation = {self.steps_per_generation} must be a multiple of gradient_accumulation_steps "
                f"= {self.gradient_accumulation_steps}: the loss is averaged over a whole optimizer step, whose "
                "completions must be known before it begins"
            )
        self._made = self._checked()

    def refuse_later_changes(self) -> None:
        """Refuse settings that changed after the configuration was built and checked.

        Raises:
            ConfigError: a setting that is checked has changed.
        """
        for name, value in self._checked().items():
            if value != self._made[name]:
                raise ConfigError(
                    f"{name} = {getattr(value, 'value', value)!r} was set after PMDConfig was made, where nothing "
                    "checks it; give it to PMDConfig(...)"
                )

    def _checked(self) -> dict[str, Any]:
        """Return every setting that is refused or changed here, with its value."""
        names = (*REPLACED, *TRUNCATING, *NOISY, *OF_TRLS_OPTIMIZER, *SHARED, *OURS)
        return {name: copy.deepcopy(getattr(self, name)) for name in names}

    def build_objective(self) -> Objective:
        """Build the objective that these settings name."""
        return build_objective(
            ObjectiveSection(name=self.objective, **cast("dict[str, Any]", self.objective_settings or {}))
        )

    def optimizer_section(self) -> OptimizerSection:
        """Return the optimizer that these settings name, as a recipe's section."""
        return section_of(self, self._defaults())

    @staticmethod
    def _defaults() -> dict[str, Any]:
        return {spec.name: spec.default for spec in fields(GRPOConfig)}


class PMDTrainer(GRPOTrainer):  # type: ignore[misc]
    """``GRPOTrainer`` whose advantages, loss and optimizer are ours; constructed the same way, with a ``PMDConfig``.

    **Limits**: one update per generation (the default): every log-ratio is exactly 0 and the gradient is that of
    ``reinforce`` on the objective's advantages. The loss and its gradient do not depend on
    ``per_device_train_batch_size``.
    """

    optimizer: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for given in (*args, *kwargs.values()):
            if isinstance(given, PMDConfig):
                given.refuse_later_changes()
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, PMDConfig):
            raise ConfigError(f"PMDTrainer needs args=PMDConfig(...), got {type(self.args).__name__}")
        if self.aux_loss_enabled:
            raise ConfigError("PMDTrainer has no router loss: set router_aux_loss_coef=0 for a mixture of experts")
        if not self.use_vllm:
            check_models_defaults(self.accelerator.unwrap_model(self.model).generation_config, self.generation_kwargs)
        self.objective = self.args.build_objective()

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Build our optimizer if ``args.optimizer`` names one, else TRL's.

        Raises:
            ConfigError: the optimizer needs more passes over a batch than TRL's loop runs.
        """
        if self.optimizer is None and self.args.optimizer:
            optimizer = build_optimizer(self.args.optimizer_section(), model or self.model)
            if isinstance(optimizer, BaseOptimizer):
                self._fit(optimizer)
            if self.accelerator.num_processes == 1:  # DDP holds gradients in the weights' dtype
                accumulate_in_float32((model or self.model).parameters())
            self.optimizer = optimizer
        return super().create_optimizer(model)  # type: ignore[no-any-return]

    def _fit(self, optimizer: BaseOptimizer) -> None:
        """Refuse an optimizer that TRL's loop cannot serve, and name the ranks it exchanges statistics with."""
        name = f"optimizer '{self.args.optimizer}'"
        if optimizer.extra_pass != "none" and not getattr(optimizer, "empirical", False):
            raise ConfigError(
                f"{name} needs passes over the batch that TRL's loop does not make; use it with heliostat train, or "
                "choose another"
            )
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ConfigError(
                f"{name} steps whole weights, and DeepSpeed or FSDP as accelerate sets it up takes them away: train "
                "with plain data parallelism, or with optimizer='adamw'"
            )
        if self.args.fp16:
            raise ConfigError(f"{name} would see gradients times fp16's loss scale: set bf16=True, or neither")
        optimizer.process_group = dist.group.WORLD if self.accelerator.num_processes > 1 else ALONE

    # -- rewards to advantages --------------------------------------------------------------------------------------

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        rewards_per_func: Tensor = super()._calculate_rewards(*args, **kwargs)
        self._rewards_per_func = rewards_per_func
        return rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        everyone = self._advantages(self._rewards_per_func)
        first = self.accelerator.process_index * len(inputs)
        output["advantages"] = everyone[first : first + len(inputs)]
        shown = self._logs["advantages"]  # the table of completions shows the trained rewards
        for _ in range(min(len(everyone), len(shown))):
            shown.pop()
        shown.extend(everyone.tolist())
        return output

    def _advantages(self, rewards_per_func: Tensor) -> Tensor:
        """Compute an advantage per completion of all processes; completions without any reward take no part."""
        rewards = (rewards_per_func * self.reward_weights.to(rewards_per_func.device)).nansum(dim=1)
        rewards[rewards_per_func.isnan().all(dim=1)] = torch.nan
        size = self.num_generations if self.model.training else self.num_generations_eval
        groups = [list(range(first, first + size)) for first in range(0, len(rewards), size)]
        return group_advantages(self.objective, rewards, groups)

    # -- one denominator per optimizer step -------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        if self.model.training and "normalizer" not in inputs:
            window = self.args.gradient_accumulation_steps
            for first in range(0, len(self._buffered_inputs), window):
                self._set_normalizer(self._buffered_inputs[first : first + window])
        elif not self.model.training:
            self._set_normalizer([inputs])
        return inputs

    def _set_normalizer(self, parts: list[dict[str, Any]]) -> None:
        """Set the normalizer of all ``parts`` on all processes, per process since gradients are averaged over those."""
        lengths = self.accelerator.gather(torch.cat([_scored(part).sum(dim=1) for part in parts]))
        # A step whose completions were all masked has loss 0 over whatever it is divided by.
        normalizer = self.objective.normalizer(lengths) if lengths.any() else 1.0
        for part in parts:
            part["normalizer"] = normalizer / self.accelerator.num_processes

    # -- loss -------------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        mask = _scored(inputs)
        logp_new, entropy, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].size(1),
            compute_entropy=True,
            **{name: inputs.get(name) for name in FORWARD_INPUTS},
        )
        if self._at_anchor():
            inputs["old_per_token_logps"] = logp_new.detach()
        output = padded_loss(
            self.objective,
            logp_new,
            mask,
            inputs["advantages"],
            inputs["normalizer"],
            logp_old=inputs["old_per_token_logps"],
            logp_gen=inputs.get("sampling_per_token_logps"),
            logp_ref=inputs.get("ref_per_token_logps"),
        )
        log_ratio = (logp_new.detach() - inputs["old_per_token_logps"]).masked_fill(~mask, 0.0).sum(dim=1)
        means = mean_values(output.metrics)
        self._note(means | {"entropy": _masked_mean(entropy, mask), "log_ratio/mean": log_ratio.mean()})
        return output.loss

    def _at_anchor(self) -> bool:
        """Whether the weights are those that sampled: before the first update of a generation, and in evaluation."""
        since_generation = self._step % (self.args.steps_per_generation * self.num_iterations)
        return not self.model.training or since_generation < self.args.gradient_accumulation_steps

    def _note(self, values: Mapping[str, Any]) -> None:
        mode = "train" if self.model.training else "eval"
        for key, value in values.items():
            local = torch.as_tensor(value, dtype=torch.float32, device=self.accelerator.device)
            self._metrics[mode][key].append(self.accelerator.gather(local).float().mean().item())


def _scored(inputs: Mapping[str, Any]) -> Tensor:
    """Mark the completion tokens that the policy sampled; tool output is not scored."""
    mask: Tensor = inputs["completion_mask"].bool()
    return mask & inputs["tool_mask"].bool() if "tool_mask" in inputs else mask


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values.detach() * mask).sum() / mask.sum().clamp(min=1)
