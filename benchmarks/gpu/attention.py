"""Attention of a group's tree of completions: a dense mask, whole rows, FlexAttention, and packed rows (varlen).

    tree      prompt, then its completions, in one row     a dense mask; FlexAttention's block mask
    rows      prompt and completion, one row each          causal
    varlen    the same rows without padding                causal, bfloat16 on a GPU alone

All compute the same outputs for the completions' tokens, which are compared with a dense mask in float32.

Left out: the rest of a layer.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from cases import NEEDS_CUDA, Findings, Setup, digits, median_seconds
from shapes import SIZES
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from heliostat.models.checks.reference_forward import short_error

NUM_TIMED = {"cpu": 1, "cuda": 20}
GROUP = {"cpu": (12, 3, 5), "cuda": (512, 8, 256)}
"""Prompt tokens, completions, and tokens of each."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From queries, keys and values of the tree ``[head, token, feature]`` to the outputs of its completions' tokens."""


@dataclass(frozen=True)
class Tree:
    """Sizes of a group, and which token belongs to which completion (0: the prompt)."""

    prompt: int
    num_rows: int
    length: int
    device: torch.device

    @property
    def segment(self) -> Tensor:
        numbers = torch.arange(self.prompt + self.num_rows * self.length, device=self.device)
        return torch.where(numbers < self.prompt, 0, 1 + (numbers - self.prompt) // self.length)

    @property
    def rows(self) -> Tensor:
        """The tokens of whole rows, by their place in the tree, ``[row, token]``."""
        own = torch.arange(self.num_rows * self.length, device=self.device).view(self.num_rows, self.length)
        given = torch.arange(self.prompt, device=self.device).expand(self.num_rows, -1)
        return torch.cat([given, self.prompt + own], dim=1)


def dense(tree: Tree) -> Attend:
    """Return attention through a dense mask of the whole tree."""
    segment = tree.segment
    past = torch.ones(len(segment), len(segment), dtype=torch.bool, device=tree.device).tril()
    mask = past & ((segment[None] == 0) | (segment[None] == segment[:, None]))

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found = scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=mask, enable_gqa=True)
        return found[0, :, tree.prompt :]

    return attend


def whole_rows(tree: Tree) -> Attend:
    """Return causal attention in whole rows, the prompt once for each."""
    places = tree.rows

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        queries, keys, values = (each[:, places].transpose(0, 1) for each in (query, key, value))
        found = scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
        return found[:, :, tree.prompt :].transpose(0, 1).flatten(1, 2)

    return attend


def flex(tree: Tree) -> Attend:
    """Return FlexAttention over the tree, compiled on a GPU; on a CPU it computes the same densely."""
    segment = tree.segment

    def sees(_row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & ((segment[key] == 0) | (segment[key] == segment[query]))

    mask = create_block_mask(sees, None, None, len(segment), len(segment), device=str(tree.device))
    run = torch.compile(flex_attention) if tree.device.type == "cuda" else flex_attention

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found: Tensor = run(query[None], key[None], value[None], block_mask=mask, enable_gqa=True)
        return found[0, :, tree.prompt :]

    return attend


def varlen(tree: Tree) -> Attend:
    """Return causal attention over the rows end to end, by torch's variable-length kernel."""
    varlen_attn = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    places = tree.rows
    width = places.shape[1]
    ends = torch.arange(tree.num_rows + 1, device=tree.device, dtype=torch.int32) * width

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        states = (each[:, places.flatten()].transpose(0, 1).contiguous() for each in (query, key, value))
        found = varlen_attn(*states, ends, ends, width, width, window_size=(-1, 0), enable_gqa=True)
        rows = found.view(tree.num_rows, width, *found.shape[1:])[:, tree.prompt :]
        return rows.flatten(0, 1).transpose(0, 1)

    return attend


WAYS: dict[str, Callable[[Tree], Attend]] = {
    "tree, dense mask": dense,
    "whole rows, causal": whole_rows,
    "tree, FlexAttention": flex,
    "whole rows, varlen": varlen,
}
CUDA_ALONE = ("whole rows, varlen",)
NO_GRADIENT_ON_CPU = ("tree, FlexAttention",)


def attention(setup: Setup) -> Findings:
    """Compare outputs, and time forward and forward with backward."""
    size = SIZES[setup.model]
    tree = Tree(*GROUP[setup.device.type], setup.device)
    dtype = torch.bfloat16 if setup.on_cuda else torch.float32
    torch.manual_seed(0)
    num_tokens = len(tree.segment)
    heads = (size.num_heads, size.num_kv_heads, size.num_kv_heads)
    states = [torch.randn(num, num_tokens, size.head_dim, device=setup.device).to(dtype) for num in heads]
    expected = dense(tree)(*(each.float() for each in states))
    found: Findings = {
        "prompt": tree.prompt,
        "completions": f"{tree.num_rows} of {tree.length}",
        "dtype": str(dtype).removeprefix("torch."),
        "ways": {},
        "faults": [],
    }
    for name, way in WAYS.items():
        if name in CUDA_ALONE and not setup.on_cuda:
            found["ways"][name] = NEEDS_CUDA
            continue
        with_gradient = setup.on_cuda or name not in NO_GRADIENT_ON_CPU
        try:
            found["ways"][name] = _measured(way(tree), states, expected, with_gradient)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of a kernel that this card or this torch lacks: the others are still measured
            found["faults"].append(f"{name}: {short_error(error)}")
            continue
        gap, slack = found["ways"][name]["largest_gap"], torch.finfo(dtype).eps ** 0.5 * float(expected.abs().max())
        if not gap <= slack:
            found["faults"].append(f"{name}: outputs off by {gap:.1g}, where rounding explains {slack:.1g}")
    return found


def _measured(attend: Attend, states: list[Tensor], expected: Tensor, with_gradient: bool) -> Findings:
    leaves = [each.clone().requires_grad_() for each in states]

    def forward() -> Tensor:
        with torch.no_grad():
            return attend(*states)

    def both() -> None:
        torch.autograd.grad(attend(*leaves).sum(), leaves)

    device = expected.device
    num = NUM_TIMED[device.type]
    found = {
        "largest_gap": digits(float((forward().float() - expected).abs().max())),
        "forward_ms": digits(1e3 * median_seconds(forward, device, num)),
    }
    if with_gradient:
        found["forward_backward_ms"] = digits(1e3 * median_seconds(both, device, num))
    return found
