"""Estimates of post-training before a first run: memory, traffic and seconds, from sizes and data sheets alone.

Formulas and their validation are in docs/explanation/scaling.md. No torch, no weights, no GPU.

Left out: everything that is measured (``benchmarks/scaling``).
"""

from heliostat.scaling.catalog import H100, MODELS
from heliostat.scaling.estimate import Estimate, estimate, job_of
from heliostat.scaling.hardware import Hardware
from heliostat.scaling.job import GpuLayout, Job
from heliostat.scaling.memory import SamplingMemory, TrainingMemory, sampling_memory, training_memory
from heliostat.scaling.seconds import StepSeconds, sampling_flops, step_seconds, training_flops
from heliostat.scaling.shapes import ModelShape, read_shape, shape_of
from heliostat.scaling.staleness import Throughput, asynchronous_s, heavy_tailed, simulate, synchronous_s
from heliostat.scaling.teacher import TeacherLoad, teacher_load
from heliostat.scaling.traffic import Traffic, step_traffic

__all__ = [
    "H100",
    "MODELS",
    "Estimate",
    "GpuLayout",
    "Hardware",
    "Job",
    "ModelShape",
    "SamplingMemory",
    "StepSeconds",
    "TeacherLoad",
    "Throughput",
    "Traffic",
    "TrainingMemory",
    "asynchronous_s",
    "estimate",
    "heavy_tailed",
    "job_of",
    "read_shape",
    "sampling_flops",
    "sampling_memory",
    "shape_of",
    "simulate",
    "step_seconds",
    "step_traffic",
    "synchronous_s",
    "teacher_load",
    "training_flops",
    "training_memory",
]
