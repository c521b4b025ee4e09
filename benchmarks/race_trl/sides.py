"""One side of the race in a process of its own: it trains a few steps and prints one JSON line for each.

    python sides.py heliostat ENTRY.json     or     python sides.py trl ENTRY.json

Both sides: GRPO with group-normalised advantages, one update per batch of rollouts, AdamW without weight decay,
temperature 1, float32 weights or float32 copies of bfloat16 ones, which TRL's autocasting comes to. TRL as it comes
takes its own precision, checkpointing and micro-batch instead.

Left out: what the numbers mean (``race``).
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import entries
from entries import MAX_ANSWER_TOKENS

if TYPE_CHECKING:
    from heliostat.config import Recipe

WARM_UP_STEPS = 1


class Clock:
    """Prints what happened since the last step: wall seconds, this process's CPU seconds, tokens, reward, memory."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def lap(self, step: int, num_tokens: float, reward: float, **more: float) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        line = {
            "step": step,
            "wall_s": wall - self.wall,
            "cpu_s": cpu - self.cpu,
            "tokens": num_tokens,
            "reward": reward,
            "peak_mib": peak_mib(),
            **more,
        }
        print("LAP " + json.dumps(line), flush=True)
        self.wall, self.cpu = time.perf_counter(), time.process_time()


def peak_mib() -> float:
    """This process's largest resident memory; ``getrusage`` would begin with that of the process that started it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def heliostat_recipe(job: Mapping[str, Any]) -> Recipe:
    """What our side is told."""
    from heliostat.config import build_recipe

    return build_recipe(
        {
            "run.num_threads": job["num_threads"],
            "model.path": job["model"],
            "model.dtype": job.get("dtype", "float32"),
            "model.chat": False,
            "task.name": "file",
            "task.path": job["prompts"],
            "task.answer_column": "answer",
            "task.verifiers": [{"name": f"entries:{job['reward']}"}],
            "task.shaped": True,
            "task.num_train": 400,
            "task.num_heldout": 1,
            "rollout.prompts_per_step": job["num_prompts"],
            "rollout.group_size": job["group_size"],
            "rollout.max_new_tokens": MAX_ANSWER_TOKENS,
            "objective.name": "grpo",
            "optimizer.lr": job["lr"],
            "optimizer.schedule": "constant",
            "train.num_steps": job["num_steps"],
            "train.checkpoint_every": 10_000,
            "eval.every": 0,
            "eval.final_samples": 1,
            **job.get("settings", {}),
        }
    )


def heliostat_side(job: Mapping[str, Any]) -> None:
    """Through the public entry, with a display that only keeps time."""
    from heliostat.train import Display, run_recipe

    class Timed(Display):
        clock: Clock

        def begin_phase(self, name: str, total: int, done: int = 0) -> None:
            self.clock = Clock()

        def step(self, index: int, values: Mapping[str, float]) -> None:
            keys = ("time/rollout", "time/update", "reward/zero_signal")
            more = {key: values[key] for key in keys}
            self.clock.lap(index, values["length/mean"] * job["num_rows"], values["reward/mean"], **more)

        def note(self, text: str) -> None:
            pass

    with tempfile.TemporaryDirectory() as folder:
        run_recipe(heliostat_recipe(job), Path(folder) / "run", "race", Timed())


def trl_side(job: Mapping[str, Any]) -> None:
    """TRL's GRPOTrainer with the settings of a contender."""
    import torch
    from transformers import TrainerCallback

    torch.set_num_threads(job["num_threads"])
    rate = getattr(entries, job["reward"])
    seen = {"tokens": 0.0, "reward": 0.0}

    def reward(completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        rewards: list[float] = rate(completions)
        seen["tokens"] = float(sum(map(len, completion_ids)))
        seen["reward"] = sum(rewards) / len(rewards)
        return rewards

    clock = Clock()

    class Laps(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.__init__()  # type: ignore[misc]

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.lap(state.global_step, seen["tokens"], seen["reward"])

    rows = [json.loads(line) for line in Path(job["prompts"]).read_text().splitlines()][:400]
    micro_batch = job.get("micro_batch", 8)
    with tempfile.TemporaryDirectory() as folder:
        train_with_trl(
            job,
            rows,
            reward,
            Laps(),
            output_dir=folder,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=job["num_rows"] // micro_batch,
            num_generations=job["group_size"],
            max_completion_length=MAX_ANSWER_TOKENS,
            lr_scheduler_type="constant",
            max_steps=job["num_steps"],
            **job["tuned"],
        )


def train_with_trl(
    job: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], reward: Callable[..., Any], laps: Any, **own: Any
) -> None:
    """Train as every race does, in float32 without a trace on the disk; ``own`` is a race's part of the settings."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(
        use_cpu=not torch.cuda.is_available(),
        temperature=1.0,
        loss_type="grpo",
        beta=0.0,
        learning_rate=job["lr"],
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=job["seed"],
        dataloader_pin_memory=False,
        **own,
    )
    GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=AutoTokenizer.from_pretrained(job["model"], padding_side="left"),
        callbacks=[laps],
    ).train()


SIDES: dict[str, Callable[[Mapping[str, Any]], None]] = {"heliostat": heliostat_side, "trl": trl_side}

if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    SIDES[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))
