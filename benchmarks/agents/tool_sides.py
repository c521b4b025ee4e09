"""One side of the race of tool loops in a process of its own: it trains a few steps and prints one JSON line for each.

    python tool_sides.py heliostat JOB.json     or     python tool_sides.py trl JOB.json

Both sides: GRPO with group-normalised advantages, one update per batch of episodes, AdamW without weight decay,
temperature 1, the same limits on turns and tokens. Of every step: wall and CPU seconds (environment processes
included), those of its rollout, sampled tokens, turns, tokens of the environment, mean reward and peak memory.

Left out: comparing (``race_trl``).
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from cards import MAX_EPISODE_TOKENS, MAX_TURN_TOKENS, NUM_CALLS, Cards

WARM_UP_STEPS = 1
LR = 1e-5

RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close": "<|im_end|>", "content": "text"},
    },
}
"""The form in which transformers reads a call for TRL."""


def living_children() -> Iterator[tuple[Path, list[str]]]:
    """The folder in ``/proc`` and the fields after the name of every process that descends from this one."""
    parents: dict[int, tuple[int, Path, list[str]]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(") ")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(folder.name)] = (int(fields[1]), folder, fields)
    for pid in parents:
        above = pid
        while above in parents and above != os.getpid():
            above = parents[above][0]
        if above == os.getpid() and pid != above:
            yield parents[pid][1:]


def cpu_seconds() -> float:
    """CPU seconds of this process and of all that it started."""
    tick = os.sysconf("SC_CLK_TCK")
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    living = sum(sum(map(int, fields[11:15])) for _, fields in living_children())
    return time.process_time() + ended.ru_utime + ended.ru_stime + living / tick


def peak_mib() -> float:
    """Peak resident memory of this process, and of those that it started and that live."""
    kib = 0  # not getrusage's, which begins with the peak of the process that started this one
    for folder in (Path("/proc/self"), *(folder for folder, _ in living_children())):
        lines = (folder / "status").read_text().splitlines()
        kib += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return kib / 1024


class Clock:
    """Seconds since the last lap, and those of a part of it."""

    def __init__(self) -> None:
        self.lap()
        self.rollout = (0.0, 0.0)

    def lap(self) -> tuple[float, float]:
        """Wall and CPU seconds since the last call."""
        now = time.perf_counter(), cpu_seconds()
        since = getattr(self, "began", now)
        self.began = now
        return now[0] - since[0], now[1] - since[1]

    def during_rollout(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            wall, cpu = time.perf_counter(), cpu_seconds()
            result = work(*args, **kwargs)
            self.rollout = (time.perf_counter() - wall, cpu_seconds() - cpu)
            return result

        return timed

    def show(self, step: int, **counted: float) -> None:
        """Print the step that has just ended."""
        wall, cpu = self.lap()
        times = {"wall_s": wall, "cpu_s": cpu, "rollout_wall_s": self.rollout[0], "rollout_cpu_s": self.rollout[1]}
        print("LAP " + json.dumps({"step": step, **times, **counted, "peak_mib": peak_mib()}), flush=True)
        self.lap()


def heliostat_settings(job: Mapping[str, Any]) -> dict[str, Any]:
    """What our side is told."""
    from caller import episode_settings

    return {
        **episode_settings(Path(job["model"]), Path(job["problems"]), "cards:Cards"),
        "run.num_threads": job["num_threads"],
        "run.seed": job["seed"],
        "rollout.prompts_per_step": job["num_prompts"],
        "rollout.group_size": job["group_size"],
        "objective.name": "grpo",
        "optimizer.lr": LR,
        "optimizer.schedule": "constant",
        "train.num_steps": job["num_steps"],
        "train.drop_zero_signal": False,  # TRL trains on groups without signal too
        "train.checkpoint_every": 10_000,
        "eval.every": 0,
        "eval.final_samples": 1,
        **job.get("settings", {}),
    }


@contextmanager
def watched_rollouts(clock: Clock, sampled: list[Any]) -> Iterator[None]:
    """Time our side's rollouts, and keep the completions of the last one."""
    from heliostat.train.rollouts.scheduler import RolloutScheduler

    following = RolloutScheduler.next

    def sample(scheduler: RolloutScheduler, step: int) -> Any:
        rollouts = following(scheduler, step)
        sampled[:] = [completion for group in rollouts.groups for completion in group.completions]
        return rollouts

    RolloutScheduler.next = clock.during_rollout(sample)  # type: ignore[method-assign]
    try:
        yield
    finally:
        RolloutScheduler.next = following  # type: ignore[method-assign]


def heliostat_side(job: Mapping[str, Any]) -> None:
    """Through the public entry, with a display that only keeps time."""
    from heliostat.config import build_recipe
    from heliostat.train import Display, run_recipe

    clock = Clock()
    sampled: list[Any] = []

    class Timed(Display):
        def begin_phase(self, name: str, total: int, done: int = 0) -> None:
            clock.lap()

        def step(self, index: int, values: Mapping[str, float]) -> None:
            if "reward/mean" not in values:  # a step of a warm start
                return
            clock.show(
                index,
                episodes=len(sampled),
                tokens=sum(completion.num_sampled for completion in sampled),
                turns=sum(len(completion.spans) for completion in sampled),
                environment_tokens=sum(len(one.token_ids) - one.num_sampled for one in sampled),
                reward=values["reward/mean"],
                zero_signal=values["reward/zero_signal"],
            )

        def note(self, text: str) -> None:
            pass

    with tempfile.TemporaryDirectory() as folder, watched_rollouts(clock, sampled):
        result = run_recipe(build_recipe(heliostat_settings(job)), Path(folder) / "run", "race", Timed())
    if result.status != "finished":
        raise SystemExit(result.reason)


def trl_side(job: Mapping[str, Any]) -> None:
    """TRL's GRPOTrainer with its ``environment_factory``."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(job["num_threads"])
    clock = Clock()
    counted: dict[str, float] = {}

    class Timed(GRPOTrainer):  # type: ignore[misc]
        def _generate(self, prompts: Any) -> Any:
            made = super()._generate(prompts)
            counted.update(count_episodes(masks=made[2]))
            return made

        def _calculate_rewards(self, *args: Any) -> Any:
            rewards = super()._calculate_rewards(*args)
            counted["reward"] = float(rewards.mean())
            groups = rewards.view(-1, job["group_size"])
            counted["zero_signal"] = float((groups == groups[:, :1]).all(dim=1).float().mean())
            return rewards

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            return clock.during_rollout(super()._generate_and_score_completions)(inputs)

    class Laps(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.lap()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.show(state.global_step, **counted)

    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    tokenizer.response_template = RESPONSE_TEMPLATE
    rows = [json.loads(line) for line in Path(job["problems"]).read_text().splitlines()][:480]
    num_rows = job["num_prompts"] * job["group_size"]
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=not torch.cuda.is_available(),
            bf16=job["bf16"],
            gradient_checkpointing=job["gradient_checkpointing"],
            per_device_train_batch_size=job["micro_batch"],
            gradient_accumulation_steps=num_rows // job["micro_batch"],
            num_generations=job["group_size"],
            max_completion_length=MAX_EPISODE_TOKENS,
            max_tool_calling_iterations=NUM_CALLS,
            generation_kwargs={"max_new_tokens": MAX_TURN_TOKENS},
            temperature=1.0,
            loss_type="grpo",
            beta=0.0,
            learning_rate=LR,
            lr_scheduler_type="constant",
            max_steps=job["num_steps"],
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=job["seed"],
            dataloader_pin_memory=False,
            **job.get("settings", {}),
        )
        Timed(
            model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            environment_factory=Cards,
            callbacks=[Laps()],
        ).train()


def count_episodes(masks: Sequence[Sequence[int]]) -> dict[str, float]:
    """Tokens and turns of episodes, from TRL's masks: 1 for a sampled token, 0 for one of the environment."""
    runs = [[is_sampled for is_sampled, _ in groupby(mask)] for mask in masks]
    return {
        "episodes": len(masks),
        "tokens": sum(map(sum, masks)),
        "turns": sum(map(sum, runs)),
        "environment_tokens": sum(len(mask) - sum(mask) for mask in masks),
    }


SIDES: dict[str, Callable[[Mapping[str, Any]], None]] = {"heliostat": heliostat_side, "trl": trl_side}

if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    SIDES[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))
