"""The estimates of one model, job, layout and machine, and a sentence for each part that does not fit.

Left out: printing (``cli.scale``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from heliostat.cards import Card
from heliostat.config import Recipe
from heliostat.scaling.hardware import Hardware
from heliostat.scaling.job import GpuLayout, Job
from heliostat.scaling.memory import MEMORY_SHARE, SamplingMemory, TrainingMemory, sampling_memory, training_memory
from heliostat.scaling.seconds import StepSeconds, step_seconds
from heliostat.scaling.shapes import ModelShape
from heliostat.scaling.teacher import TeacherLoad
from heliostat.scaling.traffic import Traffic, step_traffic


@dataclass(frozen=True, slots=True, repr=False)
class Estimate(Card):
    """The estimated memory, traffic and seconds of one way of training one model."""

    shape: ModelShape
    job: Job
    layout: GpuLayout
    hardware: Hardware
    trainer: TrainingMemory
    sampler: SamplingMemory
    traffic: Traffic
    seconds: StepSeconds
    teacher: TeacherLoad | None = None

    @property
    def obstacles(self) -> tuple[str, ...]:
        """Parts that do not fit, each with a way out."""
        return tuple(self._obstacles())

    def _obstacles(self) -> Iterator[str]:
        limit = MEMORY_SHARE * self.hardware.memory_bytes
        trainer, layout = self.trainer, self.layout
        if trainer.state > limit:
            way = "more trainers" if layout.sharded and layout.num_trainers > 1 else "distributed.placement = 'sharded'"
            way = f"{way}, or [lora]" if layout.num_trainers > 1 else "more GPUs, or [lora]"
            also = ", optimizer and teacher" if trainer.teacher else " and optimizer"
            yield f"weights, gradients{also} take {_gb(trainer.state)} of {_gb(limit)}; way out: {way}"
            if not layout.num_samplers:
                return
        elif trainer.state + trainer.gathered > limit:
            way = "expert or tensor parallelism, as verl has"
            yield f"layers gathered for a pass take {_gb(trainer.gathered)} of {_gb(limit)}; way out: {way}"
        elif trainer.peak > limit:
            way = (
                "a smaller train.tokens_per_microbatch"
                if self.job.gradient_checkpointing
                else "train.gradient_checkpointing = true"
            )
            yield f"with activations a trainer needs {_gb(trainer.peak)} of {_gb(limit)}; way out: {way}"
        if self.sampler.num_rows == 0:
            way = "more GPUs for one sampler (--ways)" if layout.num_samplers else "a vLLM server (--samplers, --ways)"
            yield f"weights of {_gb(self.sampler.weights)} leave no memory for a completion; way out: {way}"

    @property
    def gpu_hours(self) -> float:
        """Hours of a synchronous step, summed over all GPUs; idle GPUs count."""
        return self.layout.num_gpus * self.seconds.synchronous / 3600

    @property
    def tokens_per_gpu_s(self) -> float:
        """Tokens of completions and their shared prompts, per second and GPU, synchronous."""
        return self.job.trained_tokens / self.seconds.synchronous / self.layout.num_gpus


def estimate(
    shape: ModelShape,
    job: Job,
    layout: GpuLayout,
    hardware: Hardware,
    stored: str = "bfloat16",
    computed: str | None = None,
    sync: str = "folder",
    teacher: TeacherLoad | None = None,
) -> Estimate:
    """Estimate memory, traffic and seconds of one step; the arguments are those of ``step_seconds``."""
    held = teacher.weight_bytes if teacher else 0.0
    return Estimate(
        shape=shape,
        job=job,
        layout=layout,
        hardware=hardware,
        trainer=training_memory(shape, job, layout, stored, computed, held),
        sampler=sampling_memory(shape, job, layout, hardware, stored, held),
        traffic=step_traffic(shape, job, layout, stored, computed),
        seconds=step_seconds(shape, job, layout, hardware, stored, computed, sync, teacher),
        teacher=teacher,
    )


def job_of(recipe: Recipe, prompt_tokens: int, mean_tokens: float | None = None) -> Job:
    """Build the job of a recipe with these mean lengths; completions take half of their budget by default."""
    rollout, train = recipe.rollout, recipe.train
    later = (train.updates_per_step - 1) / train.updates_per_step  # updates whose anchor must be computed
    return Job(
        num_prompts=rollout.prompts_per_step,
        group_size=rollout.group_size,
        prompt_tokens=prompt_tokens,
        mean_tokens=rollout.max_new_tokens / 2 if mean_tokens is None else mean_tokens,
        longest_tokens=rollout.max_new_tokens,
        num_updates=train.updates_per_step,
        microbatch_tokens=train.tokens_per_microbatch,
        shared_prompt=train.shared_prompt,
        gradient_checkpointing=train.gradient_checkpointing,
        scored_forwards=later,
    )


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.3g} GB"
