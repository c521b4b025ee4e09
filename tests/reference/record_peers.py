"""Evaluate other frameworks' own loss and advantage functions on the shared inputs, and write them to peers.json.

TRL: the ``_compute_loss`` methods of its trainers, on an instance whose model is replaced by given log-probs. verl: the
registered policy losses and advantage estimators of ``verl.trainer.ppo.core_algos``. A peer that cannot be imported is
left out of the file, never filled in.

    python -m venv peers && peers/bin/pip install torch==2.13.0
    peers/bin/pip install trl==1.16.0 torch==2.13.0 transformers==5.23.0
    peers/bin/pip install --no-deps verl==0.9.1
    peers/bin/pip install ray hydra-core codetiming 'tensordict<=0.10' peft torchdata orjson torch==2.13.0
    peers/bin/python tests/reference/record_peers.py

Left out: heliostat itself, which this script does not import; ``tests/conformance/test_objectives.py`` compares.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peer_cases import ADVANTAGES, LOSSES, MAX_LENGTH, AdvantageCase, Inputs, LossCase, draw
from torch import Tensor

FIXTURE = Path(__file__).with_name("peers.json")
PEERS = ("trl", "verl")


def current(inputs: Inputs, at_anchor: bool) -> Tensor:
    """The log-probs that are differentiated."""
    return torch.from_numpy(inputs.logp_old if at_anchor else inputs.logp_new).clone().requires_grad_()


def importance(inputs: Inputs, cap: float) -> Tensor:
    """Truncated weights old/gen; both peers compute them before their loss function and hand them in."""
    return torch.from_numpy(inputs.logp_old - inputs.logp_gen).exp().clamp(max=cap)


def _bare_trainer(kind: type, logp: Tensor, **attributes: Any) -> Any:
    """A TRL trainer without a model: its forward is replaced by ``logp``, its loss code is untouched."""
    trainer = kind.__new__(kind)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logp, torch.zeros_like(logp).detach(), None)
    trainer.accelerator = SimpleNamespace(
        num_processes=1, gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x
    )
    trainer.model = SimpleNamespace(training=True)
    trainer._metrics = {"train": defaultdict(list)}
    trainer.aux_loss_enabled = False
    for name, value in attributes.items():
        setattr(trainer, name, value)
    return trainer


def _trl_batch(inputs: Inputs, **extra: Any) -> dict[str, Any]:
    mask = torch.from_numpy(inputs.mask).long()
    return {
        "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.int64),
        "prompt_mask": torch.ones(len(mask), 1, dtype=torch.int64),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": torch.from_numpy(inputs.advantages),
        "num_items_in_batch": mask.sum(),
    } | extra


def trl_grpo(inputs: Inputs, logp: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """``GRPOTrainer._compute_loss``."""
    from trl import GRPOTrainer

    cap = settings.get("importance_cap", 0.0)
    trainer = _bare_trainer(
        GRPOTrainer,
        logp,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        loss_type=settings["loss_type"],
        importance_sampling_level=settings.get("level", "token"),
        epsilon_low=settings.get("epsilon_low", 0.2),
        epsilon_high=settings.get("epsilon_high", 0.2),
        beta=settings.get("beta", 0.0),
        use_vllm=cap > 0,
        vllm_importance_sampling_correction=cap > 0,
        max_completion_length=MAX_LENGTH,
        current_gradient_accumulation_steps=1,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        _entropy_bonus_enabled=False,
    )
    batch = _trl_batch(
        inputs,
        old_per_token_logps=torch.from_numpy(inputs.logp_old),
        ref_per_token_logps=torch.from_numpy(inputs.logp_ref),
        importance_sampling_ratio=importance(inputs, cap),
    )
    return trainer._compute_loss(None, batch)


def trl_rloo(inputs: Inputs, logp: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """``RLOOTrainer._compute_loss``: a clipped ratio of whole sequences."""
    from trl import RLOOTrainer

    trainer = _bare_trainer(RLOOTrainer, logp, epsilon_low=0.2, epsilon_high=0.2)
    old_logps = torch.from_numpy((inputs.logp_old * inputs.mask).sum(1))
    return trainer._compute_loss(None, _trl_batch(inputs, old_logps=old_logps))


def verl_policy_loss(inputs: Inputs, logp: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """A registered policy loss of verl's ``core_algos``."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.workers.config import ActorConfig
    from verl.workers.config.actor import PolicyLossConfig

    mask = torch.from_numpy(inputs.mask).double()
    cap = settings.get("importance_cap", 0.0)
    config = ActorConfig(
        strategy="fsdp",
        ppo_micro_batch_size_per_gpu=1,
        rollout_n=1,
        clip_ratio_low=settings.get("clip_low", 0.2),
        clip_ratio_high=settings.get("clip_high", 0.2),
        clip_ratio_c=settings.get("clip_c", 1e9),
        policy_loss=PolicyLossConfig(loss_mode=settings["mode"], dro_beta=settings.get("dro_beta")),
    )
    loss, _ = get_policy_loss_fn(settings["mode"])(
        torch.from_numpy(inputs.logp_old),
        logp,
        torch.from_numpy(inputs.advantages)[:, None].expand_as(logp),
        mask,
        settings.get("aggregate", "token-mean"),
        config,
        importance(inputs, cap) if cap else None,
    )
    return loss


RUNNERS: dict[str, Callable[[Inputs, Tensor, Mapping[str, Any]], Tensor]] = {
    "trl": trl_grpo,
    "trl-rloo": trl_rloo,
    "verl": verl_policy_loss,
}


def evaluate_loss(case: LossCase) -> dict[str, Any]:
    """The peer's loss and its gradient over the tokens that are not padding, row by row."""
    inputs = draw(case.seed)
    logp = current(inputs, case.at_anchor)
    loss = RUNNERS[case.peer](inputs, logp, case.peer_settings)
    (gradient,) = torch.autograd.grad(loss, logp)
    return {"loss": loss.item(), "gradient": gradient[torch.from_numpy(inputs.mask)].tolist()}


def evaluate_advantages(case: AdvantageCase) -> list[float]:
    """verl's outcome advantages, one per sequence."""
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    inputs = draw(case.seed)
    mask = torch.from_numpy(inputs.mask).double()
    rewards = torch.zeros_like(mask)
    rewards[:, 0] = torch.from_numpy(inputs.rewards)
    advantages, _ = get_adv_estimator_fn(case.estimator)(rewards, mask, inputs.group, **case.arguments)
    return advantages[:, 0].tolist()


def installed(peer: str) -> bool:
    """Whether a peer's package is there."""
    return importlib.util.find_spec(peer) is not None


def main() -> None:
    available = [peer for peer in PEERS if installed(peer)]
    losses = [case for case in LOSSES if case.peer.partition("-")[0] in available]
    advantages = ADVANTAGES if "verl" in available else ()
    seeds = sorted({case.seed for case in (*losses, *advantages)})
    record = {
        "versions": {name: importlib.metadata.version(name) for name in ("torch", *available)},
        "checksums": {str(seed): draw(seed).checksum for seed in seeds},
        "losses": {case.key: evaluate_loss(case) for case in losses},
        "advantages": {case.key: evaluate_advantages(case) for case in advantages},
    }
    FIXTURE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{len(losses)} losses and {len(advantages)} estimators of {', '.join(available)} -> {FIXTURE}")


if __name__ == "__main__":
    main()
