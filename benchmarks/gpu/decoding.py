"""A decoding pass: the growing cache run eagerly, and a static cache run eagerly, compiled, and as a CUDA graph.

Every way is fed the same tokens after the same prompts, and its last logits are compared with those of the first.

Left out: drawing tokens, and rows that come and go (``training`` times whole steps).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import torch
from cases import NEEDS_CUDA, Findings, Setup, Skipped, digits, median_seconds
from shapes import SIZES, build
from torch import Tensor
from transformers import DynamicCache, StaticCache

from heliostat.models.checks.reference_forward import short_error

NUM_CHECKED = 4
"""Passes after which logits are compared."""

NUM_TIMED = {"cpu": 3, "cuda": 30}

Pass = Callable[[Tensor, Tensor], Tensor]
"""From tokens ``[row, 1]`` and their position ``[1]`` to logits ``[row, vocab]``."""


def growing_cache(setup: Setup) -> Findings:
    """Time the two eager passes."""
    return _measured(setup, {"static cache": _eager})


def compiled(setup: Setup) -> Findings:
    """Time a pass through ``torch.compile``, with inductor's own graphs where it makes them."""
    if not setup.on_cuda:
        raise Skipped(NEEDS_CUDA)
    if shutil.which("gcc") is None and shutil.which("cc") is None:
        raise Skipped("skipped: needs a C compiler")
    return _measured(setup, {"static cache, compiled": lambda run, *_: torch.compile(run, mode="reduce-overhead")})


def cuda_graph(setup: Setup) -> Findings:
    """Time a pass that was captured once as a CUDA graph."""
    return _measured(setup, {"static cache, CUDA graph": _captured})


Wrap = Callable[[Pass, Tensor, Tensor], Pass]


def _eager(run: Pass, token: Tensor, position: Tensor) -> Pass:
    return run


def _captured(run: Pass, token: Tensor, position: Tensor) -> Pass:
    """Capture ``run`` with buffers of its own for its inputs."""
    own_token, own_position = token.clone(), position.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # kernels that choose their algorithm at first use must not do so while captured
        for _ in range(3):
            run(own_token, own_position)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = run(own_token, own_position)

    def replay(token: Tensor, position: Tensor) -> Tensor:
        own_token.copy_(token)
        own_position.copy_(position)
        graph.replay()
        return logits

    return replay


@torch.inference_mode()
def _measured(setup: Setup, ways: dict[str, Wrap]) -> Findings:
    size = SIZES[setup.model]
    dtype = torch.bfloat16
    loaded = build(setup.model, dtype, setup.device)
    num_rows, length = size.pass_rows, size.prompt_tokens
    room = length + NUM_CHECKED + 2
    ids = torch.arange(num_rows * length, device=setup.device).view(num_rows, length) % size.vocab_size
    tokens = (ids[:, :NUM_CHECKED] + 7) % size.vocab_size
    model = loaded.model

    def growing() -> tuple[Pass, Callable[[], None]]:
        cache = DynamicCache(config=model.config)
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

        def run(token: Tensor, position: Tensor) -> Tensor:
            logits: Tensor = model(
                input_ids=token, past_key_values=cache, use_cache=True, position_ids=position[None]
            ).logits[:, -1]
            return logits

        def back() -> None:
            if grown := int(cache.get_seq_length()) - length:
                cache.crop(-grown)

        return run, back

    def static(wrap: Wrap) -> tuple[Pass, Callable[[], None]]:
        cache = StaticCache(config=model.config, max_cache_len=room)
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        columns = torch.arange(room, device=setup.device)

        def run(token: Tensor, position: Tensor) -> Tensor:
            mask = (columns <= position)[None, None, None].expand(num_rows, 1, 1, room)
            logits: Tensor = model(
                input_ids=token,
                past_key_values=cache,
                use_cache=True,
                position_ids=position[None],
                attention_mask={"full_attention": mask},
            ).logits[:, -1]
            return logits

        def back() -> None:
            for layer in cache.layers:
                counter: Any = layer
                counter.cumulative_length.fill_(length)

        back()
        fast = wrap(run, tokens[:, :1], torch.tensor([length], device=setup.device))
        back()
        return fast, back

    def tried(run: Pass, back: Callable[[], None]) -> tuple[Tensor, float]:
        positions = [torch.tensor([length + step], device=setup.device) for step in range(NUM_CHECKED)]
        back()
        for step, position in enumerate(positions):
            logits = run(tokens[:, step : step + 1], position).float().clone()

        def once() -> None:
            back()
            run(tokens[:, :1], positions[0])

        return logits, median_seconds(once, setup.device, NUM_TIMED[setup.device.type])

    expected, seconds = tried(*growing())
    found: Findings = {"rows": num_rows, "context": length, "dtype": "bfloat16", "passes": {}, "faults": []}
    found["passes"]["growing cache, eager"] = {
        "ms_per_pass": digits(1e3 * seconds),
        "tokens_per_s": digits(num_rows / seconds),
    }
    slack = torch.finfo(dtype).eps ** 0.5 * float(expected.abs().max())
    for name, wrap in ways.items():
        try:
            logits, seconds = tried(*static(wrap))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of a compiler or of a capture: a finding beside the eager times
            found["faults"].append(f"{name}: {short_error(error)}")
            continue
        gap = float((logits - expected).abs().max())
        found["passes"][name] = {
            "ms_per_pass": digits(1e3 * seconds),
            "tokens_per_s": digits(num_rows / seconds),
            "largest_gap_of_logits": digits(gap),
        }
        if not gap <= slack:
            found["faults"].append(f"{name}: logits off by {gap:.1g}, where rounding explains {slack:.1g}")
    return found
