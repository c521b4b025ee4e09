"""The whole round trip, sample -> score -> gradient, over architectures with every kind of memory."""

import numpy as np
import pytest
import torch

from heliostat.config import RolloutSection
from heliostat.models import encode_problem
from heliostat.rollout import DecodeLimits, PlainEngine, SampleRequest, SamplingSettings, TorchEngine, build_engine
from heliostat.train.logprobs.packing import rows_of
from heliostat.train.logprobs.policy import Policy
from heliostat.types import Problem, TrainingGroup
from tests.support.checkpoints import FAMILIES, load_float32, write_checkpoint

TEXTS = ("1 + 2 =", "10 + 25 - 3 =", "7 =")


@pytest.fixture(scope="module", params=FAMILIES)
def sampled(request, tmp_path_factory):
    loaded = load_float32(write_checkpoint(tmp_path_factory.mktemp(request.param), request.param))
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(3)
    prompts = [encode_problem(loaded, Problem(str(i), "t", text), chat=False) for i, text in enumerate(TEXTS)]
    engine = build_engine(loaded, DecodeLimits(7, max_rows=4), RolloutSection())
    groups = engine.sample(SampleRequest(prompts, 2, SamplingSettings(temperature=0.9), seed=5, policy_step=0))
    return request.param, loaded, engine, groups


@pytest.mark.slow
def test_the_engine_fits_the_memory(sampled):
    family, _, engine, _ = sampled
    assert isinstance(engine, TorchEngine if FAMILIES[family][2] == "kv" else PlainEngine)


@pytest.mark.slow
def test_sampler_and_trainer_agree(sampled):
    _, loaded, _, groups = sampled
    rows = rows_of([TrainingGroup(group, torch.zeros(2)) for group in groups])
    with torch.no_grad():
        logp = Policy(loaded, 0.9, shared_prompt=True).log_probs(rows).numpy()
    np.testing.assert_allclose(logp, np.concatenate([row.completion.logp_gen for row in rows]), atol=1e-4)


@pytest.mark.slow
def test_the_shared_prompt_changes_no_gradient(sampled):
    family, loaded, _, groups = sampled
    rows = rows_of([TrainingGroup(group, torch.ones(2)) for group in groups])
    gradients = []
    for shared in (True, False):
        policy = Policy(loaded, 1.0, shared_prompt=shared)
        assert policy.shared_prompt == (shared and FAMILIES[family][2] == "kv")
        loaded.model.zero_grad()
        logp = policy.log_probs(rows)
        (logp * torch.linspace(-1, 1, len(logp))).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in loaded.model.parameters() if p.grad is not None]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 1e-4
