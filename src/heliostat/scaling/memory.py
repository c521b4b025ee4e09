"""Bytes on one GPU: of training, of sampling, and of the activations that a forward keeps for its backward pass.

With ``P`` weights, ``n`` ranks and ``e`` bytes a stored weight:

    weights ``e P``, gradients ``4 P``, optimizer ``12 P`` (AdamW's two moments and a float32 master) or ``8 P``

where ``e = 2`` needs the master and ``e = 4`` is its own: 18 or 16 bytes a weight, divided by ``n`` if sharded.
Gradients of micro-batches add up in float32 whatever the weights are (``optim.gradients``).

Left out: allocator fragmentation, CUDA's and NCCL's own buffers (some GB together), LoRA, optimizers other than AdamW.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from heliostat.cards import Card
from heliostat.scaling.hardware import Hardware
from heliostat.scaling.job import GpuLayout, Job
from heliostat.scaling.shapes import ModelShape

MAX_LOGITS = 2**25
"""Logits that training has alive at once (``train.logprobs.policy``)."""

MEMORY_SHARE = 0.9
"""Of a GPU's memory that may be planned with; the rest is for what is left out here. vLLM's default, too."""

STORED = {"bfloat16": 2, "float32": 4}
"""Bytes of a stored weight by dtype."""


@dataclass(frozen=True, slots=True, repr=False)
class TrainingMemory(Card):
    """One trainer's bytes.

    Attributes:
        gathered: layers gathered for a pass (sharded only): the one in use and the next.
        activations: kept from a forward for its backward pass, logits included.
        teacher: weights of a teacher in the trainers' processes.
    """

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    activations: float
    teacher: float = 0.0

    @property
    def state(self) -> float:
        """Bytes held all the time."""
        return self.weights + self.gradients + self.optimizer + self.teacher

    @property
    def peak(self) -> float:
        """Most bytes held at any time."""
        return self.state + self.gathered + self.activations


def training_memory(
    shape: ModelShape,
    job: Job,
    layout: GpuLayout,
    stored: str = "bfloat16",
    computed: str | None = None,
    teacher: float = 0.0,
) -> TrainingMemory:
    """Compute the bytes that a trainer holds.

    Args:
        stored: dtype of the weights; a key of ``STORED``.
        computed: dtype of gathered weights and activations, if it is another.
        teacher: bytes of a teacher's weights on each trainer.

    **Limits**: the parts of state over all sharded ranks add up to those of one rank. Equal to the storage of a real
    run's tensors on one and two ranks, where sizes divide.
    """
    size, used = STORED[stored], STORED[computed or stored]
    experts, rest = shape.num_expert_parameters, shape.num_parameters - shape.num_expert_parameters
    held = rest + experts / layout.expert_ways
    gathered = 0.0
    if layout.sharded:
        gathered = 2.0 * used * _one_layer(shape, layout) if layout.num_trainers > 1 else 0.0
        held = rest / layout.num_trainers + experts / layout.num_trainers  # experts are sharded over the other ranks
    return TrainingMemory(
        weights=size * held,
        gradients=4.0 * held,
        optimizer=(12 if size == 2 else 8) * held,
        gathered=gathered,
        activations=activation_bytes(shape, job, used),
        teacher=teacher,
    )


def _one_layer(shape: ModelShape, layout: GpuLayout) -> float:
    """Count the weights of the largest layer as one rank gathers it."""
    if shape.experts is None:
        return shape.largest_layer
    num_layers = shape.num_layers - shape.experts.num_dense_layers
    of_experts = shape.num_expert_parameters / num_layers
    return shape.largest_layer - of_experts + of_experts / layout.expert_ways


def activation_bytes(shape: ModelShape, job: Job, size: int) -> float:
    """Compute the bytes kept for a micro-batch's backward pass, with ``e = size`` bytes per entry; by token and layer:

        2 (4 h + 2 e h + 4)  +  e (2 H d + 2 H_kv d) + 4 H  +  4 e f

    for norms (whose input is kept in float32), attention (with a kernel that keeps no matrix of weights) and the gated
    feed-forward. Recomputed layers keep ``e h`` each, and one is whole while its backward pass runs.

    **Limits**: the bytes that autograd saves in transformers' Llama and Qwen2 layers, exactly.
    """
    tokens = min(job.trained_tokens, job.microbatch_tokens)
    heads = tokens * min(shape.vocab, MAX_LOGITS / tokens) * 4 * 2  # logits and their softmax
    per_layer = [token_bytes(shape, layer, size) for layer in range(shape.num_layers)]
    if job.gradient_checkpointing:
        return heads + tokens * (size * shape.hidden * shape.num_layers + max(per_layer))
    return heads + tokens * sum(per_layer)


def token_bytes(shape: ModelShape, layer: int, size: int) -> float:
    """Compute the bytes kept of one token in one layer."""
    norms = 2 * (4 * shape.hidden + 2 * size * shape.hidden + 4)
    if shape.latent is None:
        attention = size * 2 * (shape.num_heads + shape.num_kv_heads) * shape.head_size
    else:
        one = shape.latent
        attention = size * shape.num_heads * (2 * (one.rotary + one.plain) + 2 * one.value)
        attention += size * 2 * (one.query_rank + one.cache_rank)
    experts = shape.experts
    if experts is None or layer < experts.num_dense_layers:
        inner = 4 * size * shape.intermediate
    else:  # a token is copied to each of its experts
        inner = (experts.num_used + experts.num_shared) * 4 * size * experts.intermediate
        inner += experts.num_used * 2 * size * shape.hidden
    return norms + attention + 4 * shape.num_heads + inner


@dataclass(frozen=True, slots=True, repr=False)
class SamplingMemory(Card):
    """One sampling GPU's bytes.

    Attributes:
        weights: its part of a replica; none where the trainer's own are used as they are.
        cache: keys and values of the rows decoded at once, at their mean length.
        num_rows: rows of full length that one replica can decode at once, as many as it is given at most.
    """

    weights: float
    cache: float
    num_rows: int

    @property
    def peak(self) -> float:
        """Bytes held while that many rows are decoded."""
        return self.weights + self.cache


def sampling_memory(
    shape: ModelShape,
    job: Job,
    layout: GpuLayout,
    hardware: Hardware,
    stored: str = "bfloat16",
    teacher: float = 0.0,
) -> SamplingMemory:
    """Compute the bytes that a sampler holds: weights and cache, next to the training state where trainers sample.

    **Limits**: a GPU without room for weights decodes no row.
    """
    ways, room = layout.sampler_ways, MEMORY_SHARE * hardware.memory_bytes
    weights = 2.0 * shape.num_parameters / ways
    if not layout.num_samplers:
        room -= training_memory(shape, job, layout, stored, teacher=teacher).state
        if not layout.sharded:
            weights = 0.0
    prompts = job.prompt_tokens / job.group_size  # a group's prompt is kept once
    of_row = 2.0 * shape.cache_entries * (prompts + job.longest_tokens) / ways
    num_rows = min(max(0, int((room - weights) // of_row)), ceil(job.num_rows / layout.num_replicas))
    cache = num_rows * 2.0 * shape.cache_entries * (prompts + job.mean_tokens) / ways
    return SamplingMemory(weights, cache, num_rows)
