"""Trajectories of a small model whose environment says known tokens."""

import torch

from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, TorchEngine
from heliostat.rollout.in_process.scripted import Scripted, script
from heliostat.train.logprobs.packing import rows_of
from heliostat.types import TrainingGroup
from tests.support.nano import make_prompts


def trajectories(loaded, num_prompts=4, group_size=3, num_replies=3, max_tokens=60, seed=3):
    """Groups of several turns, with replies of one to five tokens between them."""
    prompts = make_prompts(loaded, num_prompts)
    dialogues = [
        [Scripted(script(range(30 + number, 70), num_replies, 1 + member), 9) for member in range(group_size)]
        for number in range(num_prompts)
    ]
    request = SampleRequest(prompts, group_size, SamplingSettings(), seed=seed, policy_step=0, dialogues=dialogues)
    return TorchEngine(loaded, DecodeLimits(max_tokens)).sample(request)


def trajectory_rows(loaded, **options):
    """Their rows, with advantages of either sign."""
    groups = trajectories(loaded, **options)
    return rows_of([TrainingGroup(group, torch.linspace(-1, 1, len(group.completions))) for group in groups])
