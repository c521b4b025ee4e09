"""One recorded ragged batch, and every adapter's loss and gradient on it, by the frameworks' own calling conventions.

The inputs are those of ``peer_cases``: padded arrays drawn from a seed. A runner puts them where the framework would,
calls the adapter through the framework, and returns the loss and its gradient in the padded log-probabilities.

Left out: what the numbers should be (``tests/conformance/test_adapters.py``), and writing them down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from peer_cases import MAX_LENGTH, Inputs, draw
from torch import Tensor

SEED = 6


@dataclass(frozen=True)
class AdapterCase:
    """One objective inside one framework."""

    peer: str
    objective: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return " ".join([self.peer, self.objective, *(f"{key}={value}" for key, value in self.settings.items())])


CONSTANT = {"length_normalization": "constant", "length_constant": float(MAX_LENGTH)}
EVERYWHERE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("pmd-mean", {}),
    ("pmd-mean", {"tau": 2.0, **CONSTANT}),
    ("pmd-part", {"tau": 0.5, "leave_one_out": True}),
    ("kimi-k2", {}),
    ("opmd", {"baseline": "partition"}),
    ("log-ratio-decay", {}),
    ("kl-chi2", {}),
    ("kimi-k2.5", {"min_log_ratio": -0.2, "max_log_ratio": 0.1}),
    ("grpo", {}),
    ("gspo", {"clip_low": 0.05, "clip_high": 0.05}),
)
WITH_WEIGHTS: tuple[tuple[str, dict[str, Any]], ...] = (("dapo", {"truncated_is": 1.1}),)
WITH_REFERENCE: tuple[tuple[str, dict[str, Any]], ...] = (("grpo", {"kl_ref": 0.04, "truncated_is": 1.1}),)
REFERENCE_ONLY: tuple[tuple[str, dict[str, Any]], ...] = (("grpo", {"kl_ref": 0.04}),)

SUPPORTED = {
    "trl": EVERYWHERE + WITH_WEIGHTS + WITH_REFERENCE,
    "verl": EVERYWHERE + WITH_WEIGHTS,
    "prime_rl": EVERYWHERE + REFERENCE_ONLY,
}
CASES: tuple[AdapterCase, ...] = tuple(
    AdapterCase(peer, objective, settings) for peer, cases in SUPPORTED.items() for objective, settings in cases
)


def padded(inputs: Inputs) -> dict[str, Tensor]:
    """The arrays as tensors; ``logp_new`` is a leaf to be differentiated."""
    names = ("mask", "logp_old", "logp_gen", "logp_ref", "advantages", "rewards", "group")
    tensors = {name: torch.from_numpy(getattr(inputs, name)) for name in names}
    return tensors | {"logp_new": torch.from_numpy(inputs.logp_new).clone().requires_grad_()}


def run_trl(case: AdapterCase, batch: Mapping[str, Tensor]) -> Tensor:
    """``PMDTrainer._compute_loss`` after ``_set_normalizer``, in the second update of a generation."""
    from record_peers import _bare_trainer

    from heliostat.adapters.trl import PMDTrainer
    from heliostat.config import ObjectiveSection
    from heliostat.objectives import build_objective

    trainer = _bare_trainer(
        PMDTrainer,
        batch["logp_new"],
        objective=build_objective(ObjectiveSection(name=case.objective, **case.settings)),
        num_iterations=1,
        _step=1,
    )
    trainer.args = type("Args", (), {"steps_per_generation": 2, "gradient_accumulation_steps": 1})()
    trainer.accelerator.device = torch.device("cpu")
    mask = batch["mask"].long()
    inputs = {
        "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.int64),
        "prompt_mask": torch.ones(len(mask), 1, dtype=torch.int64),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": batch["advantages"],
        "old_per_token_logps": batch["logp_old"],
        "sampling_per_token_logps": batch["logp_gen"],
        "ref_per_token_logps": batch["logp_ref"],
    }
    trainer._set_normalizer([inputs])
    loss: Tensor = trainer._compute_loss(None, inputs)
    return loss


def run_verl(case: AdapterCase, batch: Mapping[str, Tensor]) -> Tensor:
    """A policy loss out of verl's registry, with the configuration and keywords of ``verl.workers.utils.losses``."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.workers.config import ActorConfig

    from heliostat.adapters.verl import AGGREGATION, register
    from heliostat.config import ObjectiveSection
    from heliostat.objectives import build_objective

    objective = build_objective(ObjectiveSection(name=case.objective, **case.settings))
    register(case.key, objective)
    mode = AGGREGATION[objective.length_normalization]
    config = ActorConfig(strategy="fsdp", ppo_micro_batch_size_per_gpu=1, rollout_n=1, loss_agg_mode=mode)
    mask, old = batch["mask"], batch["logp_old"]
    config.global_batch_info.update(dp_size=1, batch_num_tokens=int(mask.sum()), global_batch_size=len(mask))
    weights = (old - batch["logp_gen"]).exp() if "truncated_is" in case.settings else None
    loss: Tensor
    loss, _ = get_policy_loss_fn(case.key)(
        old_log_prob=old,
        log_prob=batch["logp_new"],
        advantages=batch["advantages"][:, None] * mask,
        response_mask=mask.double(),
        loss_agg_mode=mode,
        config=config,
        rollout_is_weights=weights,
    )
    return loss


def run_prime_rl(case: AdapterCase, batch: Mapping[str, Tensor]) -> Tensor:
    """prime-rl's custom loss, sequence by sequence, added up and divided by the step's trained tokens."""
    from prime_rl.trainer.rl.loss import LossInputs

    from heliostat.adapters.prime_rl import loss

    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(batch["mask"])):
        inputs = LossInputs(
            trainer_logprobs=batch["logp_new"][row],
            inference_logprobs=batch["logp_old"][row],
            ref_logprobs=batch["logp_ref"][row],
            advantages=batch["advantages"][row].expand(batch["mask"].shape[1]),
            loss_mask=batch["mask"][row],
            loss_weights=None,
        )
        total = total + loss(inputs, objective=case.objective, **case.settings).loss
    return total / batch["mask"].sum()


RUNNERS: dict[str, Callable[[AdapterCase, Mapping[str, Tensor]], Tensor]] = {
    "trl": run_trl,
    "verl": run_verl,
    "prime_rl": run_prime_rl,
}


def evaluate(case: AdapterCase) -> dict[str, Any]:
    """The adapter's loss and gradient over the tokens that are not padding, row by row."""
    batch = padded(draw(SEED))
    loss = RUNNERS[case.peer](case, batch)
    (gradient,) = torch.autograd.grad(loss, batch["logp_new"])
    assert not gradient[~batch["mask"]].any(), "padding got a gradient"
    return {"loss": loss.item(), "gradient": gradient[batch["mask"]].tolist()}
