"""One side of the race to a held-out success in a process of its own; its clock stops while TRL's weights are kept.

Both sides: AdamW without weight decay at a constant rate after a warm-up, temperature 1, 128 prompts x 8 completions of
at most 20 tokens, two updates with each batch, float32 weights. Left out: what the times mean (``success``).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sides import Clock, train_with_trl

KEEP_EVERY = 2
WARM_UP_UPDATES = 4
NUM_PROMPTS, GROUP_SIZE, MAX_NEW_TOKENS, NUM_UPDATES = 128, 8, 20, 2
MARKER = "= "


def says_answer(completion: str, answer: str) -> bool:
    """Return whether the text after the last marker is the answer."""
    return MARKER in completion and completion.rpartition(MARKER)[2].strip() == answer


def heliostat_side(job: Mapping[str, Any]) -> None:
    """The demo's recipe from its warm-started model, with checkpoints that are all kept."""
    from heliostat import load_recipe
    from heliostat.train import Display, run_recipe

    class Timed(Display):
        clock: Clock

        def begin_phase(self, name: str, total: int, done: int = 0) -> None:
            self.clock = Clock()

        def step(self, index: int, values: Mapping[str, float]) -> None:
            self.clock.lap(index, values["length/mean"] * NUM_PROMPTS * GROUP_SIZE, values["reward/mean"])

        def note(self, text: str) -> None:
            pass

    recipe = load_recipe(
        "demo",
        {
            "run.seed": job["seed"],
            "run.num_threads": job["num_threads"],
            "model.path": job["model"],
            "model.dtype": job["dtype"],
            "warm_start.num_steps": 0,
            "rollout.num_workers": job["num_threads"],
            "optimizer.lr": job["lr"],
            "optimizer.schedule": "constant",
            "optimizer.warmup_steps": WARM_UP_UPDATES,
            "train.num_steps": job["num_steps"],
            "train.checkpoint_every": KEEP_EVERY,
            "train.keep_checkpoints": 1000,
            "eval.every": 0,
            "eval.final_samples": 1,
            **job["own"],
        },
    )
    folder = Path(job["folder"])
    run_recipe(recipe, folder / "run", "success", Timed())
    for checkpoint in (folder / "run" / "checkpoints").iterdir():
        checkpoint.rename(folder / checkpoint.name)
    (folder / "run" / "transcripts.jsonl").rename(folder / "transcripts.jsonl")


def trl_side(job: Mapping[str, Any]) -> None:
    """TRL's GRPOTrainer on the same problems; weights are kept under the same names."""
    import torch
    from transformers import TrainerCallback

    torch.set_num_threads(job["num_threads"])
    seen = {"tokens": 0.0, "reward": 0.0}
    folder = Path(job["folder"])

    def reward(completions: Sequence[str], completion_ids: Any, answer: Sequence[str], **columns: Any) -> list[float]:
        rewards = [float(says_answer(text, right)) for text, right in zip(completions, answer, strict=True)]
        seen["tokens"] = float(sum(map(len, completion_ids)))
        seen["reward"] = sum(rewards) / len(rewards)
        return rewards

    clock = Clock()

    class Laps(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.__init__()  # type: ignore[misc]

        def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any = None, **kwargs: Any) -> None:
            step, rest = divmod(state.global_step, NUM_UPDATES)
            if rest:
                return
            clock.lap(step, seen["tokens"], seen["reward"])
            if step % KEEP_EVERY == 0:
                model.save_pretrained(folder / f"step_{step:06d}")
                clock.__init__()  # type: ignore[misc]

    rows = [json.loads(line) for line in Path(job["problems"]).read_text().splitlines()]
    num_rows = NUM_PROMPTS * GROUP_SIZE
    train_with_trl(
        job,
        rows,
        reward,
        Laps(),
        output_dir=str(folder / "output"),
        bf16=job["bf16"],
        gradient_checkpointing=False,
        per_device_train_batch_size=job["micro_batch"],
        gradient_accumulation_steps=num_rows // job["micro_batch"],
        num_generations=GROUP_SIZE,
        num_iterations=NUM_UPDATES,
        max_completion_length=MAX_NEW_TOKENS,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=WARM_UP_UPDATES,
        max_steps=job["num_steps"] * NUM_UPDATES,
    )


SIDES = {"heliostat": heliostat_side, "trl": trl_side}

if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    SIDES[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))
