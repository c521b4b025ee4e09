"""Measure how far one unit of rounding, and a lost adapter, move the logits of a model.

    python benchmarks/export/rounding.py --model smollm2-135m --rank 8

The comparison of a saved model with the trainer's (``heliostat.models.checks.saved_model``) has to let the first pass
and to refuse the second. One line a dtype: the median gap when every weight moves by one unit in its last place, and
the gaps when the adapters of one kind of layer are lost, smallest and largest. Adapters are perturbed as in
the trial before training. Left out: whether anything is saved right, which the trial asks of every run.
"""

import argparse
from copy import deepcopy
from typing import Literal

import torch

from heliostat.config import LoraSection, ModelSection
from heliostat.models import load_model
from heliostat.models.checks.saved_model import jitter, median_gap, trainer_logits
from heliostat.models.lora import add_adapters, perturbed_adapters

PROMPTS = ("What is 12 + 30?", "Name the capital of France.", "Sort: 3, 1, 2.", "A train leaves at noon. When")


def gaps(dtype: Literal["float32", "bfloat16"], model: str, rank: int) -> tuple[float, dict[str, float]]:
    """The gap of one unit of rounding, and by kind of layer the gap that losing its adapters makes."""
    loaded = load_model(ModelSection(path=model, dtype=dtype), seed=0, device=torch.device("cpu"))
    add_adapters(loaded.model, LoraSection(rank=rank), seed=0)
    prompts = [loaded.tokenizer.encode(text) for text in PROMPTS]
    with perturbed_adapters(loaded.model, seed=0):
        whole = trainer_logits(loaded, prompts).values
        factors = {name: each for name, each in loaded.model.named_parameters() if ".lora_B." in name}
        kinds = sorted({name.split(".lora_B.")[0].rpartition(".")[2] for name in factors})
        lost = {}
        for kind in kinds:
            own = [each.data for name, each in factors.items() if f".{kind}.lora_B." in name]
            kept = [each.clone() for each in own]
            for each in own:
                each.zero_()
            lost[kind] = median_gap(trainer_logits(loaded, prompts).values, whole)
            for each, old in zip(own, kept, strict=True):
                each.copy_(old)
        rounded = deepcopy(loaded)
    jitter(rounded.model)
    return median_gap(trainer_logits(rounded, prompts).values, whole), lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rank", type=int, default=8)
    args = parser.parse_args()
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    for dtype in dtypes:
        rounding, lost = gaps(dtype, args.model, args.rank)
        least, most = min(lost, key=lambda kind: lost[kind]), max(lost, key=lambda kind: lost[kind])
        print(
            f"{dtype}: one unit of rounding {rounding:.1e}; adapters lost: {least} {lost[least]:.2f} (least) to "
            f"{most} {lost[most]:.2f} (most)",
            flush=True,
        )


if __name__ == "__main__":
    main()
