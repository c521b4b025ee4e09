"""Compare a fast way of computing a model with the model's own forward, one text at a time, before it is used.

    truth    log softmax(model(text) / T), one row, no cache, no mask, no positions given
    T        a part of the largest of the model's logits, so that differences count alike in any model
    bound    the effect of rounding: several times the change of the truth itself when a text is truncated

A wrong mask or position moves a random model's logits by less than bfloat16 resolves. So the comparison runs on a
float32 copy of the weights if memory allows. If a model hardly depends on the order of its tokens (a random one attends
to all alike), its matrices are scaled up first: the test is of the computation, not of the weights.

Left out: the ways that are compared (``rollout.in_process.ways``, ``train.logprobs.layout_trial``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from heliostat.models.architecture_probes import num_embedded_ids, probing
from heliostat.models.loaded_model import LoadedModel

MEMO = "tolerance"
"""Under this name a loaded model remembers how it is compared; its copies and its sharded form share it."""

LENGTHS = (9, 2, 14)
"""Lengths of the test prompts: short next to long, and not sorted."""

NUM_COMMON = 18
"""Tokens that a second set of prompts has in common: enough to be prefilled once for all."""

NUM_NEW = 6
"""Tokens sampled after every prompt."""

MAX_WINDOW_WORK = 5e10
"""Weights times tokens up to which a prompt longer than the model's windows is tried as well (a second on one core)."""

NOISE, ULPS, MAX_BOUND = 32, 64, 0.02
"""The bound: so many times the measured noise, at least so many units in the last place, at most so many nats."""

GAINS, MIN_REACTION = (1.0, 4.0, 12.0), 300
"""Factors of the matrices, tried until the order of early tokens moves the last answer by so many times the bound."""

MAX_NATS = 4.0
"""How far the furthest logit lies from the mean at the temperature compared at."""

WINDOWS, SPARSE = ("window", "attention_chunk", "local_attention"), ("index_topk",)
"""What is in the names that configurations give to a number of positions that a token sees: the nearest, the best."""

NO_WINDOWS, BLOCKS = ("layers", "pattern"), {"index_topk_blocks": "index_block_size"}
"""What is in the names of other things about windows, and which numbers count blocks of another number of positions."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The tolerance for differences of log-probabilities of one model.

    Attributes:
        temperature: divides the logits before log-probabilities are compared.
        bound: the largest difference that rounding explains, in nats.
        gain: multiplies the model's matrices while it is compared (``comparison_mode``).
    """

    temperature: float
    bound: float
    gain: float


def num_tried(loaded: LoadedModel) -> int:
    """Return the number of tokens to sample after each prompt, fewer in a very short context."""
    return max(1, min(NUM_NEW, loaded.context_length - 1))


def mixed_contexts(loaded: LoadedModel) -> list[tuple[int, ...]]:
    """Return prompts of mixed lengths to test together, one longer than the model's windows."""
    room = max(1, loaded.context_length - num_tried(loaded))
    beyond = reach(loaded)
    lengths = [min(length, room) for length in (*LENGTHS, *([] if beyond is None else [beyond]))]
    ids = _ordinary_ids(loaded, max(lengths) + 8 * len(lengths))
    return [tuple(ids[8 * index :][:length]) for index, length in enumerate(lengths)]


def common_contexts(loaded: LoadedModel) -> list[tuple[int, ...]]:
    """Return prompts with a common prefix to test together; empty if the context is too short."""
    if loaded.context_length - num_tried(loaded) < NUM_COMMON + 4:
        return []
    ids = tuple(_ordinary_ids(loaded, NUM_COMMON + 8))
    return [ids[:NUM_COMMON] + ids[-length:] for length in (4, 1)]


def reach(loaded: LoadedModel) -> int | None:
    """Return the length of a prompt that exceeds the model's windows, if it has any and the test is cheap enough."""
    windows = [value for value in _windows(loaded) if value + 3 > max(LENGTHS)]
    beyond = [value + 3 for value in windows if loaded.num_parameters * value <= MAX_WINDOW_WORK]
    room = loaded.context_length - num_tried(loaded)
    return max((length for length in beyond if length <= room), default=None)


def unreached(loaded: LoadedModel) -> bool:
    """Return whether the model has a window that a context can exceed and no test does."""
    room = loaded.context_length
    return any(value < room and value + 3 > max(max(LENGTHS), reach(loaded) or 0) for value in _windows(loaded))


def _windows(loaded: LoadedModel) -> list[int]:
    config = loaded.model.config.get_text_config()
    whole = set(getattr(config, "layer_types", None) or ()) == {"full_attention"}
    words = SPARSE if whole else (*WINDOWS, *SPARSE)
    values = {name: value for name, value in vars(config).items() if type(value) is int and value > 0}
    return [
        value * values.get(BLOCKS.get(name, ""), 1)
        for name, value in values.items()
        if any(word in name for word in words) and not any(word in name for word in NO_WINDOWS)
    ]


def _ordinary_ids(loaded: LoadedModel, num: int) -> list[int]:
    """Return ids without a special meaning, spread over the vocabulary, always the same."""
    size = num_embedded_ids(loaded.model)
    special = {*loaded.eos_ids, loaded.pad_id, *loaded.tokenizer.all_special_ids}
    ids = [index for index in range(size) if index not in special] or list(range(size))
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(len(ids))).tolist()
    return [ids[order[index % len(order)]] for index in range(num)]


@torch.no_grad()
def reference_log_probs(
    loaded: LoadedModel, context: Sequence[int], tokens: Sequence[int], temperature: float
) -> Float[Tensor, " token"]:
    """Compute log-probabilities of ``tokens`` after ``context`` by the model's own forward of that one text."""
    ids = torch.tensor([[*context, *tokens]], device=loaded.model.device)
    logits = loaded.model(input_ids=ids, use_cache=False).logits[0, len(context) - 1 : -1].float()
    logp = torch.log_softmax(logits / temperature, dim=-1)
    return logp.gather(1, ids[0, len(context) :, None]).squeeze(1).cpu()


def measure_tolerance(loaded: LoadedModel) -> Tolerance:
    """Measure a model's tolerance as it is and, if it hardly depends on token order, with larger matrices.

    The result is cached: it depends on the architecture, and hardly on the values of the weights.
    """
    if MEMO not in loaded.memo:
        loaded.memo[MEMO] = _best_tolerance(loaded)
    found = loaded.memo[MEMO]
    assert isinstance(found, Tolerance)
    return found


def _best_tolerance(loaded: LoadedModel) -> Tolerance:
    best: tuple[float, Tolerance] | None = None
    for gain in GAINS:
        with comparison_mode(loaded, gain):
            found = _measured(loaded, gain)
        if best is None or found[0] > best[0]:
            best = found
        if found[0] >= MIN_REACTION:
            break
    assert best is not None
    return best[1]


def _measured(loaded: LoadedModel, gain: float) -> tuple[float, Tolerance]:
    """Return the effect of swapping two early tokens, in units of the bound, and the tolerance."""

    def logits(ids: Tensor) -> Tensor:
        found: Tensor = loaded.model(input_ids=ids, use_cache=False).logits[0].float()
        return found

    text = max(mixed_contexts(loaded), key=len)
    ids = torch.tensor([text], device=loaded.model.device)
    whole = logits(ids)
    # By the furthest logit, not their deviation: a token that is certain at this temperature would show no difference.
    furthest = float((whole - whole.mean(dim=-1, keepdim=True)).abs().max())
    spread = max(furthest / MAX_NATS, torch.finfo(torch.float32).tiny)
    noise = 0.0
    for length in {max(1, len(text) // 3), max(1, len(text) - 1)}:
        noise = max(noise, float((logits(ids[:, :length]) - whole[:length]).abs().max()) / spread)
    ulp = torch.finfo(loaded.model.dtype).eps * max(1.0, float(whole.abs().max()) / spread)
    bound = min(MAX_BOUND, max(NOISE * noise, ULPS * ulp))
    order = torch.arange(len(text))
    order[: len(text) // 2] = order[: len(text) // 2].flip(0)
    moved = float((logits(ids[:, order])[-1] - whole[-1]).abs().max()) / spread
    return moved / bound, Tolerance(spread, bound, gain)


@contextmanager
def comparison_mode(loaded: LoadedModel, gain: float = 1.0) -> Iterator[None]:
    """Set a model up for comparisons inside the block: no gradient, no dropout, float32 if memory allows.

    Args:
        gain: multiplies the matrices between embedding and head.
    """
    with probing(loaded.model), _in_float32(loaded), _amplified(loaded, gain):
        yield


@contextmanager
def _in_float32(loaded: LoadedModel) -> Iterator[None]:
    tensors = [*loaded.model.parameters(), *loaded.model.buffers()]
    narrow = [each for each in tensors if each.is_floating_point() and each.dtype.itemsize < 4]
    fits = 4 * sum(each.numel() for each in narrow) <= _spare_bytes(loaded.model.device)
    with _replaced(narrow if fits else [], lambda each: each.float()):
        yield


@contextmanager
def _amplified(loaded: LoadedModel, gain: float) -> Iterator[None]:
    from heliostat.models.transformers_internals import Conv1D

    ends = (loaded.model.get_input_embeddings(), loaded.model.get_output_embeddings())  # type: ignore[no-untyped-call]
    kept = {id(weight) for module in ends if module is not None for weight in module.parameters()}
    products = [module.weight for module in loaded.model.modules() if isinstance(module, nn.Linear | Conv1D)]
    own = {id(weight): weight for weight in products if id(weight) not in kept}
    with _replaced(list(own.values()) if gain != 1 else [], lambda each: gain * each):
        yield


@contextmanager
def _replaced(tensors: Sequence[Tensor], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace tensors by a function of them inside the block; their original memory is restored afterwards."""
    stored = [each.data for each in tensors]
    try:
        for each in tensors:
            each.data = change(each.data)
        yield
    finally:
        for each, before in zip(tensors, stored, strict=True):
            each.data = before


def _spare_bytes(device: torch.device) -> int:
    """Return the bytes that a temporary copy may take."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def short_error(error: Exception) -> str:
    """Return a short message for an error of third-party code."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}".rstrip(": .")
