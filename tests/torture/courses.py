"""Runs killed at an event of theirs and continued: alone, rolled back, and on two ranks with sharded weights."""

import contextlib
import io
import os
import random
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from heliostat.config import Recipe
from heliostat.train import run_recipe
from heliostat.train.trainer import Trainer
from heliostat.train.update.safe_step import TrainingDiverged
from tests.support import small
from tests.support.forks import in_child
from tests.support.kills import Events, count_events, killed_at

SETTINGS = {
    "warm_start.num_steps": 4,
    "rollout.prompts_per_step": 3,
    "task.num_heldout": 6,
    "eval.num_problems": 4,
    "eval.every": 2,
    "train.num_steps": 5,
    "train.checkpoint_every": 2,
}
STEP = Trainer.step
BROKEN_AT = 5
"""The position in the data whose numbers break, so that the guard goes back."""


def breaking_step(trainer: Trainer, step: int) -> dict[str, float]:
    if step + trainer.guard.skipped == BROKEN_AT:
        raise TrainingDiverged("the loss is not finite")
    return STEP(trainer, step)


class Course:
    """One recipe, how it ends undisturbed, and ways to disturb it."""

    def __init__(self, folder: Path, rolled_back: bool = False, **settings: object) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.recipe: Recipe = small.recipe(folder, **{**SETTINGS, **settings})
        self.rolled_back = rolled_back
        self.whole = folder / "whole"
        self.num_events = count_events(self.run(self.whole))
        self.ended = content(self.whole)

    def run(self, run_dir: Path) -> Callable[[], None]:
        def work() -> None:
            if self.rolled_back:
                Trainer.step = breaking_step  # type: ignore[method-assign]
            with contextlib.redirect_stdout(io.StringIO()):
                assert run_recipe(self.recipe, run_dir, "torture").exit_code == 0

        return work

    def survives(self, event: int) -> bool:
        """Kill a run at one of its events and continue it."""
        run_dir = self.folder / f"killed-{event}"
        killed_at(event, self.run(run_dir))
        code = os.waitstatus_to_exitcode(os.waitpid(in_child(self.run(run_dir)), 0)[1])
        alike = code == 0 and content(run_dir) == self.ended
        if alike:
            shutil.rmtree(run_dir)
        return alike


def content(run_dir: Path) -> dict[str, object]:
    """Everything about a run that does not depend on the clock."""
    texts = {name: (run_dir / name).read_bytes() for name in ("evals.jsonl", "transcripts.jsonl")}
    model = {path.name: path.read_bytes() for path in (run_dir / "model").iterdir()}
    checkpoints = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    files = {name: run_dir / "checkpoints" / name / "model.safetensors" for name in checkpoints}
    weights = {name: path.read_bytes() for name, path in files.items() if path.exists()}
    names = sorted(path.name for path in run_dir.iterdir())
    return {**texts, "model": model, "weights": weights, "names": names, "metrics": small.metrics(run_dir)}


def kills(course: Course, num: int, randomness: random.Random) -> tuple[int, int]:
    """Kill at events drawn without replacement; those near checkpoints are many, since that is where files are."""
    events = randomness.sample(range(1, course.num_events + 1), min(num, course.num_events))
    return sum(course.survives(event) for event in events), len(events)


class ShardedCourse(Course):
    """The same on two ranks; the kill hits one of them, and the other is ended as torchrun ends it."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.recipe = small.recipe(folder, **{**SETTINGS, "distributed.placement": "sharded", **settings})
        self.rolled_back = False
        self.whole = folder / "whole"
        self.counts = [0, 0]
        assert self.on_ranks(self.whole) == [0, 0]
        self.counts = [int((folder / f"events-{rank}").read_text()) for rank in range(2)]
        self.num_events = sum(self.counts)
        self.ended = content(self.whole)

    def on_ranks(self, run_dir: Path, event: int = 0) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = [in_child(self.rank(run_dir, rank, port, event)) for rank in range(2)]
        codes: dict[int, int] = {}
        while len(codes) < 2:
            pid, status = os.wait()
            codes[pid] = os.waitstatus_to_exitcode(status)
            for other in set(ranks) - set(codes) if codes[pid] else ():
                os.kill(other, signal.SIGKILL)
        return [codes[pid] for pid in ranks]

    def rank(self, run_dir: Path, rank: int, port: int, event: int) -> Callable[[], None]:
        """What one rank does; its events are counted after those of the ranks before it."""

        def work() -> None:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            events = Events(event - sum(self.counts[:rank]))
            events.install()
            events.on = True
            self.run(run_dir)()
            events.on = False
            if not event:
                (self.folder / f"events-{rank}").write_text(str(len(events.seen)))

        return work

    def survives(self, event: int) -> bool:
        run_dir = self.folder / f"killed-{event}"
        assert -signal.SIGKILL in self.on_ranks(run_dir, event)
        alike = self.on_ranks(run_dir, -1) == [0, 0] and content(run_dir) == self.ended
        if alike:
            shutil.rmtree(run_dir)
        return alike
