"""Every table of the pages on scaling, computed; with ``--write`` they are put into the pages.

    python benchmarks/scaling/page.py [--write]

The measured table reads ``results/measured.json`` (``measure.py``). Published numbers stand here with their sources.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from heliostat.scaling import (
    H100,
    MODELS,
    GpuLayout,
    Job,
    StepSeconds,
    estimate,
    heavy_tailed,
    simulate,
    step_seconds,
    step_traffic,
    training_memory,
)

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "docs" / "explanation" / "scaling.md", ROOT / "docs" / "studies" / "scaling.md")
MEASURED = Path(__file__).parent / "results" / "measured.json"

JOB = Job(
    num_prompts=64, group_size=16, prompt_tokens=512, mean_tokens=2048, longest_tokens=8192, microbatch_tokens=16384
)
AGAIN = dataclasses.replace(JOB, gradient_checkpointing=True)
ROUTES = (
    ("qwen2.5-0.5b", "8, replicated", GpuLayout(8)),
    ("qwen2.5-7b", "8, sharded", GpuLayout(8, True)),
    ("qwen2.5-7b", "8 sharded + 8 sample", GpuLayout(8, True, 8)),
    ("qwen2.5-32b", "32 sharded + 32 sample by 4", GpuLayout(32, True, 32, 4)),
    ("kimi-k2", "512 sharded, experts by 64 + 512 sample by 32", GpuLayout(512, True, 512, 32, 64)),
)


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = list(head)
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.3g}" if num_bytes < 1e12 else f"{num_bytes / 1e9:,.0f}"


def models() -> str:
    names = ("qwen2.5-0.5b", "qwen2.5-7b", "qwen2.5-32b", "kimi-k2")
    return table(
        ("model", "weights", "used by a token", "largest layer", "cache, bytes a token", "TFLOP a trained token"),
        (
            (
                name,
                f"{MODELS[name].num_parameters:,}",
                f"{MODELS[name].num_active:,}",
                f"{MODELS[name].largest_layer:,}",
                f"{2 * MODELS[name].cache_entries:,}",
                f"{3 * MODELS[name].forward_flops(1, AGAIN.trained_context) / 1e12:.3g}",
            )
            for name in names
        ),
    )


def memory() -> str:
    def row(name: str, what: str, layout: GpuLayout) -> tuple[object, ...]:
        plain = training_memory(MODELS[name], JOB, layout)
        found = estimate(MODELS[name], AGAIN, layout, H100)
        held, sampler = found.trainer, found.sampler
        return (
            f"{name}, {what}",
            *map(gb, (held.weights, held.gradients, held.optimizer, held.gathered, plain.activations)),
            *map(gb, (held.activations, held.peak, sampler.weights, sampler.cache)),
            sampler.num_rows,
        )

    head = ("GB a GPU", "weights", "gradients", "optimizer", "gathered", "activations", "recomputed")
    return table((*head, "peak", "sampler's weights", "its cache", "rows"), (row(*route) for route in ROUTES))


def seconds() -> str:
    def row(name: str, what: str, layout: GpuLayout) -> tuple[object, ...]:
        one = step_seconds(MODELS[name], AGAIN, layout, H100)
        other = step_seconds(MODELS[name], AGAIN, layout, H100, sync="network")
        wire = step_traffic(MODELS[name], AGAIN, layout).wire(layout.num_trainers)
        parts = (one.prefill, one.decode, one.compute, one.traffic, one.optimizer)
        handed = f"{one.sync:.3g} or {other.sync:.3g}" if layout.num_samplers else f"{one.sync:.3g}"
        best = f"{other.asynchronous:.3g}" if layout.num_samplers else ""
        return (
            f"{name}, {what}",
            *(f"{part:.3g}" for part in parts),
            gb(wire),
            handed,
            f"{other.synchronous:.3g}",
            best,
        )

    head = ("s a step", "prompts", "tokens", "training", "its traffic", "optimizer", "GB sent", "weights over")
    return table((*head, "synchronous", "never waiting"), (row(*route) for route in ROUTES))


def growth() -> str:
    """The 7B model's step on ten and a hundred times the GPUs: the same batch, and one that grows with them."""

    def row(factor: int, grows: bool) -> tuple[object, ...]:
        num = 8 * factor
        layout = GpuLayout(num, True, num)
        job = dataclasses.replace(AGAIN, num_prompts=AGAIN.num_prompts * (factor if grows else 1))
        one = step_seconds(MODELS["qwen2.5-7b"], job, layout, H100, sync="network")
        base = step_seconds(MODELS["qwen2.5-7b"], AGAIN, GpuLayout(8, True, 8), H100, sync="network").synchronous
        ideal = base if grows else base / factor
        exchange = step_traffic(MODELS["qwen2.5-7b"], job, layout).object_all_gather
        return (
            f"{2 * num:,} GPUs, batch x{factor if grows else 1}",
            *(f"{part:.3g}" for part in (one.sampling, one.compute, one.traffic, one.synchronous)),
            f"{ideal / one.synchronous:.0%}",
            gb(exchange),
        )

    cases = [(1, False), (10, False), (100, False), (10, True), (100, True)]
    head = ("s a step", "sampling", "training", "its traffic", "whole", "of ideal", "GB exchanged")
    return table(head, (row(*case) for case in cases))


BOUNDS = (0, 1, 2, 4, 8, 16)


def staleness() -> str:
    """The 7B split above: lengths drawn with a heavy tail at the model's pace of one token, cut off at the budget."""
    one = step_seconds(MODELS["qwen2.5-7b"], AGAIN, GpuLayout(8, True, 8), H100, sync="network")
    update_s = one.training + one.sync
    rows = []
    for spread in (0.0, 0.5, 1.0):
        for ratio in (0.5, 1.0, 2.0):
            lengths = heavy_tailed(JOB.num_rows * 60, JOB.mean_tokens, spread, JOB.longest_tokens)
            pace = ratio * update_s / (sum(lengths) / len(lengths))  # slots for one batch: S = E[length] t
            durations = [pace * length for length in lengths]
            runs = [simulate(durations, JOB.num_rows, JOB.num_rows, update_s, bound, 20) for bound in BOUNDS]
            best = max(ratio, 1.0) * update_s
            rows.append((f"{spread:g}, {ratio:g}", *(f"{run.update_s / best:.2f}" for run in runs)))
    return table(("spread, sampling / training", *(f"s = {bound}" for bound in BOUNDS)), rows)


def published() -> str:
    """What others measured, beside what the formulas say of the same job."""
    llama, large = MODELS["llama-3.1-8b"], MODELS["llama-3.1-405b"]
    peak = H100.flops_per_s
    step = 3 * llama.forward_flops(1, 8192)  # whole attention matrices, as torchtitan counts them
    cut = [training_memory(llama, JOB, GpuLayout(num, True), "float32").state / 2**30 for num in (8, 128)]
    kimi = MODELS["kimi-k2"]
    over = H100.link_s(kimi.num_parameters, 16)
    rows = [
        ("405B, share of peak at 400 TFLOP/s [1]", f"{400e12 / peak:.2f}", "0.41"),
        ("8B, FSDP on 8, share of peak at 5,762 tokens/s [2]", f"{5762 * step / peak:.3f}", "0.33"),
        ("8B, FSDP on 8, compiled, share of peak at 6,667 tokens/s [2]", f"{6667 * step / peak:.3f}", "0.39"),
        ("8B, FSDP on 8 instead of 128, GiB more [2]", f"{cut[0] - cut[1]:.1f}", "15.0 to 15.4"),
        ("7.5B, plain data parallel, GB of state [3]", f"{16 * 7.5:.0f}", "120"),
        ("7.5B, on 64, GB of state [3]", f"{16 * 7.5 / 64:.2f}", "1.9"),
    ]
    for name, layout, mean, time in (
        ("llama-3.1-8b", GpuLayout(16, True), 1060, 97.7),
        ("llama-3.1-8b", GpuLayout(8, True, 8), 1129, 74.6),
        ("qwen3-32b", GpuLayout(32, True, 0, 4), 3206, 393.0),
        ("qwen3-32b", GpuLayout(32, True, 32, 4), 3207, 215.0),
    ):
        one = peer(name, layout, mean)
        value = one.asynchronous if layout.num_samplers else one.synchronous
        which = "one step off, half the GPUs each" if layout.num_samplers else "synchronous"
        rows.append((f"{name}, GRPO on {layout.num_gpus}, {which}, s a step [4]", f"{value:.0f}", f"{time:g}"))
    rows.append(("Kimi-K2 in 8 bits to 16 GPUs, s [5]", f"{over:.1f}", "14.4"))
    return table(("", "formula", "published"), rows) + f"\n\n405B: {large.num_parameters:,} weights."


def peer(name: str, layout: GpuLayout, mean: float) -> StepSeconds:
    """NeMo RL's recipe: 2,048 completions, four updates; two scoring passes and prompts of 150 tokens are assumed."""
    job = Job(
        num_prompts=64,
        group_size=32,
        prompt_tokens=150,
        mean_tokens=mean - 150,
        longest_tokens=4096 - 150,
        num_updates=4,
        microbatch_tokens=4096,
        shared_prompt=False,
        gradient_checkpointing=True,
        scored_forwards=2.0,
        diagnosed=False,
    )
    return step_seconds(MODELS[name], job, layout, H100, sync="network")


def measured() -> str:
    """Formula over count or measurement: one row a quantity, one column a run."""
    cases = json.loads(MEASURED.read_text())["cases"]
    quantities = dict.fromkeys(quantity for case in cases.values() for quantity in case)
    rows = [
        (quantity, *(f"{case[quantity]['ratio']:.3f}" if quantity in case else "" for case in cases.values()))
        for quantity in quantities
    ]
    return table(("formula / measured", *cases), rows)


TABLES = {
    "models": models,
    "memory": memory,
    "seconds": seconds,
    "growth": growth,
    "staleness": staleness,
    "published": published,
    "measured": measured,
}


def filled(text: str) -> str:
    """The page's text with each of its tables computed anew."""
    for name, make in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        if pattern.search(text):
            text = pattern.sub(partial(around, make()), text)
    return text


def around(table: str, match: re.Match[str]) -> str:
    """Return a table between its marks."""
    return f"{match[1]}\n{table}\n{match[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into the pages of docs")
    if parser.parse_args().write:
        for page in PAGES:
            page.write_text(filled(page.read_text()))
        return
    for name, make in TABLES.items():
        print(f"## {name}\n\n{make()}\n")


if __name__ == "__main__":
    main()
