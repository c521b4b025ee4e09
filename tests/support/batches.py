"""Batches with given tokens, probabilities and rewards, for signals to be measured on."""

import numpy as np
import torch

from heliostat.types import Batch, Completion, Group, Problem, Prompt, StopReason, TrainingGroup, Verdict


def completion(token_ids, logp=None, entropy=None, text=""):
    size = len(token_ids)
    logp = np.full(size, -1.0) if logp is None else np.asarray(logp)
    entropy = np.full(size, 0.5) if entropy is None else np.asarray(entropy)
    return Completion(
        tuple(token_ids), logp.astype(np.float32), entropy.astype(np.float32), StopReason.EOS, text, seed=0
    )


def group(completions, rewards=None, task="sums", prompt=(1, 2), advantages=None):
    rewards = [0.0] * len(completions) if rewards is None else rewards
    verdicts = tuple(Verdict(reward, reward == 1.0) for reward in rewards)
    made = Group(Prompt(Problem(f"{task}/{prompt}", task, "?"), tuple(prompt)), tuple(completions), verdicts)
    values = torch.tensor(rewards, dtype=torch.float64) if advantages is None else torch.as_tensor(advantages)
    return TrainingGroup(made, values - values.mean() if advantages is None else values)


def random_batch(seed, num_groups=6, size=4):
    rng = np.random.default_rng(seed)
    groups = []
    for index in range(num_groups):
        members = []
        for _ in range(size):
            length = int(rng.integers(1, 50))
            members.append(
                completion(rng.integers(0, 5, length), -rng.random(length), rng.random(length), str(rng.integers(0, 3)))
            )
        rewards = rng.integers(0, 2, size).astype(float).tolist()
        groups.append(group(members, rewards, task="ab"[index % 2], prompt=(index // 2,)))
    return Batch(tuple(groups))
