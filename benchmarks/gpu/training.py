"""Whole runs: one that is killed and resumed, one that is profiled, a step of the large shape, and the race with TRL.

Left out: several devices, and servers (``tests/promises/test_gpu.py``).
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import apart
import torch
from cases import Findings, Setup, Skipped, digits, median_seconds
from parity import SHAPE
from rich.console import Console
from rich.table import Table
from shapes import SIZES, build

from heliostat.config import Recipe, RolloutSection, build_recipe
from heliostat.models import BACKWARD_COST, forward_flops, save_model
from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, build_engine
from heliostat.train import Display, run_recipe
from heliostat.train.accounting.machine_peak import measure_machine_peak, peak_bytes, reset_peak_memory, wait_for
from heliostat.train.logprobs.packing import rows_of
from heliostat.train.logprobs.policy import Policy
from heliostat.types import Problem, Prompt, TrainingGroup

RACE = Path(__file__).resolve().parents[1] / "race_trl" / "race.py"
LAST_STEP, KILL_AT = 6, 3
RUN_S = 500  # the case's own budget ends it earlier on a GPU
MIB = 2**20


def recipe(folder: Path, changes: dict[str, Any]) -> Recipe:
    """Return a short run on sums, with a reward that random completions partly earn."""
    data = folder / "sums.jsonl"
    lines = [json.dumps({"prompt": f"{a} + {b} =", "answer": str(a + b)}) for a in range(8) for b in range(8)]
    data.write_text("\n".join(lines) + "\n")
    settings = {
        "model.path": "tiny",
        "model.settings": SHAPE,
        "model.dtype": "bfloat16",
        "model.chat": False,
        "task.name": "file",
        "task.path": str(data),
        "task.answer_column": "answer",
        "task.verifiers": [{"name": "rewards:parity"}],
        "task.num_train": 48,
        "task.num_heldout": 8,
        "audit.enabled": False,  # the reward has nothing to do with the answers
        "warm_start.num_steps": 0,
        "rollout.prompts_per_step": 4,
        "rollout.group_size": 4,
        "rollout.max_new_tokens": 8,
        "train.num_steps": LAST_STEP,
        "train.checkpoint_every": 2,
        "eval.every": 0,
        "eval.final_samples": 1,
        "guard.panel_every": 0,
        "run.num_threads": 1,
    }
    return build_recipe({key: value for key, value in {**settings, **changes}.items() if value is not None})


def kill_and_resume(setup: Setup) -> Findings:
    """Kill a run with SIGKILL and resume it; its weights must be those of a run that nothing stopped.

    On a GPU two such runs may differ by themselves, where kernels add in any order; that difference is measured too.
    """
    chosen = recipe(setup.folder, {})

    def trained(name: str) -> str:
        return run_recipe(chosen, setup.folder / name, display=Display(Console(quiet=True))).status

    def to_the_end(name: str, process: str) -> None:
        ended = apart.run(lambda: trained(name), setup.folder / process, RUN_S)
        if ended.fault or ended.result != "finished":
            raise RuntimeError(ended.fault or f"a run ended as {ended.result}")

    to_the_end("whole", "1")
    by_itself = 0.0
    if setup.on_cuda:
        to_the_end("again", "2")
        by_itself = _largest_difference(setup.folder / "whole", setup.folder / "again")
    killed = apart.start(lambda: trained("killed"), setup.folder / "3")
    seen = _killed_at(killed, setup.folder / "killed" / "metrics.jsonl")
    to_the_end("killed", "4")
    after_kill = _largest_difference(setup.folder / "whole", setup.folder / "killed")
    return {
        "killed_after_step": seen,
        "dtype": "bfloat16",
        **({"difference_of_two_whole_runs": by_itself} if setup.on_cuda else {}),
        "difference_after_the_kill": after_kill,
        "faults": [] if after_kill <= by_itself else [f"weights differ by {after_kill:.1g} after the kill"],
    }


def _killed_at(child: int, metrics: Path) -> int:
    """Kill a run once it has written step ``KILL_AT``; return its last step."""
    until = time.monotonic() + RUN_S
    try:
        while (last := _last_step(metrics)) < KILL_AT:
            if time.monotonic() > until:
                raise RuntimeError(f"the run had not written step {KILL_AT} after {RUN_S} s")
            time.sleep(apart.TICK_S)
    finally:
        apart.kill(child)
    if last >= LAST_STEP:
        raise RuntimeError("the run had ended before it could be killed")
    return last


def _last_step(metrics: Path) -> int:
    lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    return max((int(json.loads(line)["step"]) for line in lines if line.endswith("\n")), default=0)


def _largest_difference(one: Path, two: Path) -> float:
    from safetensors.torch import load_file

    ours, theirs = (load_file(each / "model" / "model.safetensors") for each in (one, two))
    return max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in ours)


class Recorded(Display):
    """A display that keeps tables and metrics, and prints nothing."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.tables: list[Table] = []
        self.steps: list[dict[str, float]] = []

    def table(self, table: Table) -> None:
        """Keep a table."""
        self.tables.append(table)

    def step(self, index: int, values: Any) -> None:
        """Keep a step's metrics."""
        self.steps.append(dict(values))


def profile(setup: Setup) -> Findings:
    """Profile a run of the large shape: seconds, speed against the ceilings and peak memory by phase."""
    size = SIZES[setup.model]
    save_model(build(setup.model, torch.bfloat16, setup.device), setup.folder / "model")
    if setup.on_cuda:
        torch.cuda.empty_cache()
    display = Recorded()
    changes = {
        "model.path": str(setup.folder / "model"),
        "model.settings": None,
        "rollout.prompts_per_step": size.num_prompts,
        "rollout.group_size": size.group_size,
        "rollout.max_new_tokens": size.new_tokens,
        "train.num_steps": 5,
        "train.checkpoint_every": 100,
    }
    result = run_recipe(recipe(setup.folder, changes), setup.folder / "run", display=display, profile=True)
    if result.status != "finished":
        raise RuntimeError(result.reason)
    table = next(table for table in display.tables if (table.title or "").startswith("One step"))  # type: ignore[union-attr]
    columns = {str(column.header): [str(cell) for cell in column.cells] for column in table.columns}
    speeds = {key: digits(statistics.median(step[key] for step in display.steps[1:]))
              for key in ("speed/rollout_tokens", "speed/step_tokens")}  # fmt: skip
    return {
        "title": str(table.title),
        "phases": [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)],
        "notes": str(table.caption).splitlines(),
        "tokens_per_s": speeds,
    }


def large_step(setup: Setup) -> Findings:
    """Time sampling, forward, backward and optimizer of one batch, with peak memory and the share of the ceiling."""
    size, device = SIZES[setup.model], setup.device
    loaded = build(setup.model, torch.bfloat16, device)
    endless = dataclasses.replace(loaded, eos_ids=frozenset())
    ids = [7 + n % 500 for n in range(size.prompt_tokens)]
    prompts = [Prompt(Problem(f"p{n}", "kit", ""), (7 + n, *ids[1:])) for n in range(size.num_prompts)]
    engine: Any = build_engine(endless, DecodeLimits(size.new_tokens), RolloutSection())
    request = SampleRequest(prompts, size.group_size, SamplingSettings(), seed=0, policy_step=0)
    groups = engine.sample(request)
    rows = rows_of([TrainingGroup(group, torch.zeros(len(group.completions))) for group in groups])
    policy = Policy(loaded, 1.0, shared_prompt=True)
    optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=1e-6)
    micro_batch = [row for row in rows if row.group == rows[0].group]
    peak = measure_machine_peak(device, torch.bfloat16)
    num_new = size.num_prompts * size.group_size * size.new_tokens

    def measured(work: Any) -> Findings:
        wait_for(device)
        reset_peak_memory(device)
        seconds = median_seconds(work, device, 2)
        return {"seconds": digits(seconds), "peak_mib": round(peak_bytes(device) / MIB)}

    def backward() -> None:
        optimizer.zero_grad(set_to_none=True)
        policy.log_probs(micro_batch).sum().backward()  # type: ignore[no-untyped-call]

    phases = {
        "sampling": measured(lambda: engine.sample(request)),
        "forward and backward of one group": measured(backward),
        "optimizer (AdamW)": measured(optimizer.step),
    }
    phases["sampling"]["tokens_per_s"] = digits(num_new / phases["sampling"]["seconds"])
    gradient = phases["forward and backward of one group"]
    tokens = size.prompt_tokens + size.group_size * (size.new_tokens - 1)
    attended = size.prompt_tokens + size.new_tokens / 2
    flops = (1 + BACKWARD_COST) * forward_flops(loaded, tokens, attended, size.group_size * size.new_tokens)
    gradient["share_of_ceiling"] = digits(flops / gradient["seconds"] / peak.flops_per_s, 2)
    return {
        "parameters": loaded.num_parameters,
        "decoded_with": engine.way,
        "batch": f"{size.num_prompts} prompts of {size.prompt_tokens} tokens, {size.group_size} completions of "
        f"{size.new_tokens} each",
        "phases": phases,
        "ceiling_gflops": digits(peak.flops_per_s / 1e9),
        "ceiling_gb_per_s": digits(peak.bytes_per_s / 1e9),
    }


def race(setup: Setup) -> Findings:
    """Race against TRL's GRPOTrainer with transformers' generate: one short round on the 5M model."""
    if not setup.trl_python:
        raise Skipped("skipped: needs --trl-python")
    laps = setup.folder / "laps.jsonl"
    words = ["--trl-python", setup.trl_python, "--store", str(laps), "--contenders", "heliostat", "trl bfloat16"]
    words += ["--models", "5M", "--workloads", "short", "--rounds", "1", "--steps", "2"]
    done = subprocess.run([sys.executable, str(RACE), *words], text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["the race failed"])[-1])
    sides: dict[str, list[dict[str, float]]] = {}
    for lap in map(json.loads, laps.read_text().splitlines()):
        if lap["step"] > 1:
            sides.setdefault(lap["contender"], []).append(lap)
    return {
        name: {
            "wall_s_per_step": digits(statistics.median(lap["wall_s"] for lap in mine)),
            "tokens_per_s": digits(statistics.median(lap["tokens"] / lap["wall_s"] for lap in mine)),
        }
        for name, mine in sides.items()
    }
