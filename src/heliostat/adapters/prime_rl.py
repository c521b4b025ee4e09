"""prime-rl: a custom loss by import path.

    [trainer.loss]
    type = "custom"
    import_path = "heliostat.adapters.prime_rl.loss"

    [trainer.loss.kwargs]
    objective = "pmd-mean"
    tau = 0.1

prime-rl calls the loss once per sequence, adds the results up and divides by the number of trained tokens of the whole
step. So the sum that an objective would divide by its own N is divided by tokens here: with ``length_normalization``
``none`` or ``sequence`` loss and gradient are smaller by the mean length, which Adam does not see and a gradient clip
does. The only old log-probabilities that arrive are the sampler's: they are the anchor.

Left out: advantages, which prime-rl's orchestrator computes (its group mean is PMD-mean's), and optimizers, which its
configuration closes. Written for prime-rl 0.8.0, which is on no index: the tests use its two dataclasses, with the
fields that ``tests/reference/record_prime_rl.py`` reads from its source.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from heliostat.adapters.padded import only_advantage, padded_loss, refuse_whole_groups
from heliostat.config import ConfigError, ObjectiveSection
from heliostat.objectives import Objective, build_objective


def loss(inputs: Any, objective: str = "pmd-mean", **settings: float | str | bool) -> Any:
    """Compute one sequence's share of the loss, before prime-rl's division: ``w_i loss_i``.

    Args:
        inputs: prime-rl's ``LossInputs``: log-probs of the trainer and the sampler, advantages, mask, weights.
        objective: an objective's name; ``settings`` are its keys.

    Returns:
        prime-rl's ``LossOutputs``.

    Raises:
        ConfigError: an unknown name or key, or importance weights, which would all be 1.
        ValueError: advantages or weights that differ between the tokens of a sequence; also as in ``Objective.loss``.

    **Limits**: added up over sequences and divided by their tokens: our loss with ``length_normalization = "token"``.
    """
    from prime_rl.trainer.rl.loss import LossOutputs

    built = _build(objective, tuple(sorted(settings.items())))
    mask = inputs.loss_mask.unsqueeze(0)
    reference = inputs.ref_logprobs
    output = padded_loss(
        built,
        inputs.trainer_logprobs.unsqueeze(0),
        mask,
        only_advantage(inputs.advantages.unsqueeze(0), mask),
        built.normalizer_of_counts(1, 1),
        logp_old=inputs.inference_logprobs.unsqueeze(0),
        logp_ref=None if reference is None else reference.unsqueeze(0),
    )
    weight = 1.0 if inputs.loss_weights is None else only_advantage(inputs.loss_weights.unsqueeze(0), mask)[0]
    log_ratio = (inputs.trainer_logprobs.detach() - inputs.inference_logprobs)[inputs.loss_mask].sum()
    metrics: dict[str, Tensor] = {"log_ratio": log_ratio}
    metrics |= {key.replace("/", "_"): log_ratio.new_tensor(mean.value) for key, mean in output.metrics.items()}
    return LossOutputs(loss=weight * output.loss, metrics=metrics)


@cache
def _build(name: str, settings: tuple[tuple[str, Any], ...]) -> Objective:
    built = build_objective(ObjectiveSection(name=name, **dict(settings)))
    refuse_whole_groups(built, "prime-rl")
    if getattr(built, "truncated_is", 0.0) > 0:
        raise ConfigError("truncated_is has no effect in prime-rl, whose loss sees the sampler's log-probs only")
    return built
