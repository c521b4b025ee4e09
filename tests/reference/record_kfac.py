"""Writes ``kfac.json``: Kronecker factors by curvlinops-for-pytorch 3.0.1, which the tests compare ours with.

    pip install curvlinops-for-pytorch && python tests/reference/record_kfac.py

``empirical`` is the Fisher matrix of the data's labels, ``type-2`` the exact expectation over labels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

FIXTURE = Path(__file__).with_name("kfac.json")


def problem() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """A two-layer classifier and ten samples, the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    inputs = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    return model, inputs, torch.randint(0, 3, (10,), generator=generator)


def curvlinops_blocks(fisher_type: str) -> dict[str, list[list[float]]]:
    """Per layer, the curvature block that curvlinops' K-FAC gives for the mean cross-entropy, written out."""
    from curvlinops import KFACLinearOperator

    model, inputs, labels = problem()
    operator = KFACLinearOperator(
        model,
        torch.nn.CrossEntropyLoss(reduction="mean"),
        list(model.parameters()),
        [(inputs, labels)],
        fisher_type=fisher_type,
        separate_weight_and_bias=False,
    )
    dense = operator @ torch.eye(operator.shape[1], dtype=torch.float64)
    sizes = [15, 12]  # [weight, bias] of each layer
    blocks, start = {}, 0
    for name, size in zip(("0", "2"), sizes, strict=True):
        blocks[name] = dense[start : start + size, start : start + size].tolist()
        start += size
    return blocks


def evaluate() -> dict[str, Any]:
    return {kind: curvlinops_blocks(kind) for kind in ("empirical", "type-2")}


if __name__ == "__main__":
    FIXTURE.write_text(json.dumps(evaluate()) + "\n")
