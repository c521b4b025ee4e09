"""The registered losses and estimators through the installed verl's own registry and loss function."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from ragged import build

from heliostat.config import ConfigError

pytestmark = pytest.mark.peers
pytest.importorskip("verl")
pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl's own dependencies are missing", exc_type=ImportError)

from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn  # noqa: E402

from heliostat.adapters.verl import AGGREGATION, objective_from_environment, register  # noqa: E402
from heliostat.objectives import OBJECTIVES  # noqa: E402

OLD = torch.tensor([[-1.0, -2.0, -0.5], [-1.0, -1.0, -1.0]], dtype=torch.float64)
MASK = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
ADVANTAGES = torch.tensor([[0.5], [-0.5]], dtype=torch.float64) * MASK


class Config:
    def __init__(self, **info):
        self.global_batch_info = info


def loss_of(name, rows=slice(None), config=None, mode="seq-mean-token-sum", advantages=ADVANTAGES, **extra):
    logp = (OLD[rows] + 0.1).requires_grad_()
    value, metrics = get_policy_loss_fn(name)(
        old_log_prob=OLD[rows],
        log_prob=logp,
        advantages=advantages[rows],
        response_mask=MASK[rows],
        loss_agg_mode=mode,
        config=config,
        **extra,
    )
    (gradient,) = torch.autograd.grad(value, logp)
    return value.item(), gradient, metrics


def test_every_objective_is_there_by_name():
    for name in set(OBJECTIVES) - {"tpo", "lpo"}:
        assert get_policy_loss_fn(f"heliostat-{name}")
        assert get_adv_estimator_fn(f"heliostat-{name}")


def test_pmd_mean_by_hand():
    """tau = 0.2, A = +-0.5, s = 0.3 and 0.1: mean of 0.1 (A/tau - s)^2."""
    value, gradient, metrics = loss_of("heliostat-pmd-mean")
    assert value == pytest.approx(0.05 * ((2.5 - 0.3) ** 2 + (-2.5 - 0.1) ** 2))
    assert gradient[0].tolist() == pytest.approx([-0.22] * 3)
    assert gradient[1].tolist() == pytest.approx([0.26, 0.0, 0.0])
    assert metrics["actor/ppo_kl"] == pytest.approx(-0.1)


@pytest.mark.parametrize("mode", sorted(AGGREGATION))
def test_ranks_and_micro_batches_add_up_to_the_whole(mode):
    """Each of two ranks has one row; gradients are averaged over ranks, as FSDP does."""
    settings = {"length_constant": 5.0} if mode == "constant" else {}
    register(f"test {mode}", build("pmd-mean", length_normalization=mode, **settings))
    _, whole, _ = loss_of(f"test {mode}", mode=AGGREGATION[mode])
    info = {"dp_size": 2, "batch_num_tokens": 4, "global_batch_size": 2}
    parts = [loss_of(f"test {mode}", slice(r, r + 1), Config(**info), AGGREGATION[mode])[1] for r in range(2)]
    assert torch.allclose(torch.cat(parts) / 2, whole, rtol=1e-12)


def test_advantages_compare_the_rows_of_one_prompt():
    rewards = torch.zeros(5, 3)
    rewards[:, 2] = torch.tensor([1.0, 0.0, 0.0, 1.0, 3.0])
    index = np.array(["a", "b", "a", "b", "c"], dtype=object)
    mask = torch.ones(5, 3)
    mask[0, 2] = 0
    advantages, returns = get_adv_estimator_fn("heliostat-pmd-mean")(
        token_level_rewards=rewards, response_mask=mask, index=index, config=None
    )
    assert advantages[:, 0].tolist() == [0.5, -0.5, -0.5, 0.5, 0.0]
    assert advantages[0].tolist() == [0.5, 0.5, 0.0]
    assert torch.equal(advantages, returns)


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("loss_agg_mode=seq-mean-token-sum", {"mode": "token-mean"}),
        ("rollout_is=null", {"rollout_is_weights": torch.ones(2, 3)}),
    ],
)
def test_settings_that_would_be_ignored_are_refused(words, arguments):
    with pytest.raises(ConfigError, match=words):
        loss_of("heliostat-pmd-mean", **arguments)


def test_token_level_advantages_are_refused():
    with pytest.raises(ValueError, match="differ between the tokens"):
        loss_of("heliostat-pmd-mean", advantages=torch.arange(6.0).reshape(2, 3))


def test_a_reference_penalty_belongs_to_verl():
    with pytest.raises(ConfigError, match="use_kl_loss"):
        register("never", build("grpo", kl_ref=0.1))


@pytest.mark.parametrize("described", ["{", "[]", "{}", '{"name": "pmd-meen"}', '{"name": "pmd-mean", "tua": 1}'])
def test_a_wrong_description_is_one_sentence(described):
    with pytest.raises(ConfigError):
        objective_from_environment(described)


SCRIPT = """
import torch, verl
from verl.trainer.ppo.core_algos import get_policy_loss_fn
old = torch.tensor([[-1.0, -2.0]])
loss, _ = get_policy_loss_fn("heliostat")(
    old_log_prob=old, log_prob=old + 0.1, advantages=torch.full((1, 2), 0.5), response_mask=torch.ones(1, 2),
    loss_agg_mode="seq-mean-token-sum", config=None)
print(float(loss))
"""


def test_verl_loads_the_module_itself_and_tau_gets_past_its_closed_configuration():
    """A fresh process in which only the environment names us, as on every worker of a cluster."""
    environment = {
        **os.environ,
        "VERL_USE_EXTERNAL_MODULES": "heliostat.adapters.verl",
        "HELIOSTAT_OBJECTIVE": json.dumps({"name": "pmd-mean", "tau": 2.0}),
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) == pytest.approx(1.0 * (0.25 - 0.2) ** 2, rel=1e-4)
