"""The size of one step of post-training: its tokens, its ranks, and the placement of weights.

Left out: the verifiers' time.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from heliostat.config import ConfigError


@dataclass(frozen=True, slots=True)
class Job:
    """The tokens of one step, all ranks together. Defaults are a recipe's.

    Attributes:
        num_prompts, group_size: groups of a step, completions of each.
        prompt_tokens: of one prompt.
        mean_tokens, longest_tokens: of a completion, on average and at most.
        num_updates: optimizer steps of a step.
        microbatch_tokens: tokens of one forward and backward on a rank.
        shared_prompt: whether training runs each prompt once per group.
        gradient_checkpointing: whether layers are recomputed in the backward pass.
        scored_forwards: forward passes over the batch besides those with a gradient, for an anchor or a reference.
        diagnosed: whether some groups are scored again after a step, for its metrics. Heliostat's trainer does that.
    """

    num_prompts: int
    group_size: int
    prompt_tokens: int
    mean_tokens: float
    longest_tokens: int
    num_updates: int = 1
    microbatch_tokens: int = 8192
    shared_prompt: bool = True
    gradient_checkpointing: bool = False
    scored_forwards: float = 0.0
    diagnosed: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.mean_tokens <= self.longest_tokens:
            raise ConfigError(
                f"completions of {self.mean_tokens:g} tokens on average cannot be at most {self.longest_tokens} long"
            )

    @property
    def num_rows(self) -> int:
        """Number of completions."""
        return self.num_prompts * self.group_size

    @property
    def trained_tokens(self) -> float:
        """Tokens of one pass over the batch, padding apart."""
        num_prompts = self.num_prompts if self.shared_prompt else self.num_rows
        return num_prompts * self.prompt_tokens + self.num_rows * self.mean_tokens

    @property
    def trained_context(self) -> float:
        """Positions that such a token attends to, on average."""
        num_prompts = self.num_prompts if self.shared_prompt else self.num_rows
        of_prompts = num_prompts * self.prompt_tokens**2 / 2
        of_completions = self.num_rows * self.mean_tokens * (self.prompt_tokens + self.mean_tokens / 2)
        return (of_prompts + of_completions) / self.trained_tokens

    @property
    def decoded_context(self) -> float:
        """Positions that a decoded token attends to, on average."""
        return self.prompt_tokens + self.mean_tokens / 2

    def num_microbatches(self, num_ranks: int) -> int:
        """Count the forward and backward passes of a rank in one update."""
        return max(1, ceil(self.trained_tokens / self.num_updates / num_ranks / self.microbatch_tokens))


@dataclass(frozen=True, slots=True)
class GpuLayout:
    """The tasks of the GPUs.

    Attributes:
        num_trainers: ranks that train.
        sharded: weights, gradients and optimizer state are sharded over them, instead of replicated.
        num_samplers: further GPUs that only sample; 0: the trainers sample, in turn with training.
        sampler_ways: GPUs over which one sampler's weights are sharded (tensor and expert parallel).
        expert_ways: trainers over which experts are divided before sharding. Heliostat's own trainer has 1.
    """

    num_trainers: int = 1
    sharded: bool = False
    num_samplers: int = 0
    sampler_ways: int = 1
    expert_ways: int = 1

    def __post_init__(self) -> None:
        if self.sampling_gpus % self.sampler_ways:
            raise ConfigError(f"{self.sampling_gpus} GPUs cannot sample in teams of {self.sampler_ways}")
        if self.num_trainers % self.expert_ways:
            raise ConfigError(f"{self.num_trainers} trainers cannot divide experts {self.expert_ways} ways")

    @property
    def sampling_gpus(self) -> int:
        """GPUs that sample."""
        return self.num_samplers or self.num_trainers

    @property
    def num_replicas(self) -> int:
        """Copies of the weights that sample, each on ``sampler_ways`` GPUs."""
        return self.sampling_gpus // self.sampler_ways

    @property
    def num_gpus(self) -> int:
        """All GPUs."""
        return self.num_trainers + self.num_samplers
