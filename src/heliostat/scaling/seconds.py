"""Seconds of one step's parts: each is the larger of its FLOPs and its bytes, over the rates that the machine reaches.

decode     max(bytes, FLOPs):  steps x weights touched + rows' caches  |  2 N_active per token
prefill    FLOPs: each prompt once
    train      FLOPs: a forward and twice that backward, once more if recomputed, and passes that only score
    sharded traffic overlaps the computation, so the longer of the two counts; replicated gradients come after it

Left out: latency, padding, verifiers, and the time in which ranks wait for the one with most to do.
"""

from __future__ import annotations

from dataclasses import dataclass

from heliostat.cards import Card
from heliostat.scaling.hardware import Hardware
from heliostat.scaling.job import GpuLayout, Job
from heliostat.scaling.memory import STORED, sampling_memory
from heliostat.scaling.shapes import ModelShape
from heliostat.scaling.teacher import TeacherLoad
from heliostat.scaling.traffic import diagnosed_tokens, step_traffic

BACKWARD = 2  # of one forward: a product for the inputs' gradient, and one for the weights'


@dataclass(frozen=True, slots=True, repr=False)
class StepSeconds(Card):
    """One synchronous step.

    Attributes:
        prefill, decode: sampling.
        steady: ``decode`` if no slot ever waited for others to end: sampling that never stops.
        compute, traffic: seconds of training's FLOPs, and of its bytes between GPUs.
        overlapped: whether the two run in parallel.
        optimizer: reading and writing weights and state.
        sync: sending weights to the sampler.
        teacher: forward passes of a teacher in the trainers' processes.
    """

    prefill: float
    decode: float
    steady: float
    compute: float
    traffic: float
    overlapped: bool
    optimizer: float
    sync: float
    teacher: float = 0.0

    @property
    def sampling(self) -> float:
        """Seconds of prompts and completions."""
        return self.prefill + self.decode

    @property
    def training(self) -> float:
        """Seconds of all updates of the step."""
        moved = max(self.compute, self.traffic) if self.overlapped else self.compute + self.traffic
        return moved + self.optimizer + self.teacher

    @property
    def synchronous(self) -> float:
        """Seconds of a step whose parts follow one another: no staleness."""
        return self.sampling + self.training + self.sync

    @property
    def asynchronous(self) -> float:
        """Seconds of a step if samplers and trainers only wait for the slower of them: staleness without a bound."""
        return max(self.prefill + self.steady, self.training + self.sync)


def step_seconds(
    shape: ModelShape,
    job: Job,
    layout: GpuLayout,
    hardware: Hardware,
    stored: str = "bfloat16",
    computed: str | None = None,
    sync: str = "folder",
    teacher: TeacherLoad | None = None,
) -> StepSeconds:
    """Estimate the seconds of one step's parts.

    Args:
        sync: how weights reach samplers of their own: ``folder`` (written and read, as the vLLM client does) or
            ``network`` (broadcast).
        teacher: its forward passes follow sampling, and its weights leave less room for it.

    **Limits**: on one rank no traffic; with many ranks training tends to its traffic, and sampling to the longest
    completion decoded alone.
    """
    num, size = layout.num_trainers, STORED[stored]
    taught = teacher or TeacherLoad()
    prefill, decode, steady = _sampling(shape, job, layout, hardware, stored, taught.weight_bytes)
    moved = step_traffic(shape, job, layout, stored, computed)
    held = shape.num_parameters / (num if layout.sharded else 1)
    state = (
        4 + 2 * size + 2 * (12 if size == 2 else 8)
    ) * held  # gradients and weights read, weights and state rewritten
    handed = 0.0
    if layout.num_samplers:
        over_links = hardware.link_s(moved.sync, layout.num_gpus)
        handed = over_links if sync == "network" else 2 * hardware.folder_s(moved.sync)
    else:
        handed = hardware.link_s(moved.sampling_all_gather * (num - 1) / num, num)
    wire = moved.wire(num) - moved.sampling_all_gather * (num - 1) / num
    return StepSeconds(
        prefill=prefill,
        decode=decode,
        steady=steady,
        compute=hardware.compute_s(training_flops(shape, job, num), num),
        traffic=hardware.link_s(wire, num),
        overlapped=layout.sharded,
        optimizer=job.num_updates * hardware.read_s(state, 1),
        sync=handed,
        teacher=hardware.compute_s(taught.flops, num),
    )


def training_flops(shape: ModelShape, job: Job, num_ranks: int = 1) -> float:
    """Count the FLOPs of all updates of a step, with and without gradient, if every rank did as much as the busiest.

    **Limits**: one rank, the ledger's count for a batch of equal prompts and completions.
    """
    logits = job.num_rows * job.mean_tokens
    forward = shape.forward_flops(job.trained_tokens, job.trained_context, logits)
    diagnosed = num_ranks * forward * diagnosed_tokens(job, num_ranks) / job.trained_tokens
    return forward * (1 + BACKWARD + job.gradient_checkpointing + job.scored_forwards) + diagnosed


def sampling_flops(shape: ModelShape, job: Job) -> float:
    """Count the FLOPs of a step's sampling: every prompt once, then token by token."""
    prompts = shape.forward_flops(job.num_prompts * job.prompt_tokens, job.prompt_tokens / 2, job.num_prompts)
    tokens = job.num_rows * job.mean_tokens
    return prompts + shape.forward_flops(tokens, job.decoded_context)


def _sampling(
    shape: ModelShape, job: Job, layout: GpuLayout, hardware: Hardware, stored: str, teacher: float
) -> tuple[float, float, float]:
    """Estimate the seconds of prefill, decoding, and decoding with always full slots, for parallel replicas."""
    ways, num = layout.sampler_ways, layout.num_replicas
    prompts = shape.forward_flops(job.num_prompts * job.prompt_tokens, job.prompt_tokens / 2, job.num_prompts)
    prefill = hardware.compute_s(prompts, ways * num)
    slots = sampling_memory(shape, job, layout, hardware, stored, teacher).num_rows
    if slots == 0:
        return prefill, float("inf"), float("inf")
    num_tokens = job.num_rows / num * job.mean_tokens
    # Slots refill as rows end. Once the last rows have begun they run out, the longest alone.
    steady_steps = max(num_tokens / slots, 1.0)
    num_steps = max(0.0, steady_steps - job.mean_tokens) + job.longest_tokens
    decode = _decode_s(shape, job, hardware, ways, num_steps, num_tokens)
    return prefill, decode, _decode_s(shape, job, hardware, ways, steady_steps, num_tokens)


def _decode_s(shape: ModelShape, job: Job, hardware: Hardware, ways: int, num_steps: float, num_tokens: float) -> float:
    """Estimate the seconds of ``num_steps`` forward passes that compute ``num_tokens`` tokens together."""
    weights = 2.0 * shape.touched_parameters(num_tokens / num_steps) * num_steps
    caches = 2.0 * shape.cache_entries * job.decoded_context * num_tokens
    flops = shape.forward_flops(num_tokens, job.decoded_context)
    return max(hardware.read_s(weights + caches, ways), hardware.compute_s(flops, ways))
