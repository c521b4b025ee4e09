"""Checkpoints of sharded weights (FSDP2, two ranks over gloo), killed on either rank at every event of saving them."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from heliostat.storage import Extent
from heliostat.train.distributed.fsdp import shard
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.run_folder.checkpoints import Checkpoints
from tests.support.forks import in_child
from tests.support.kills import Events
from tests.support.nano import make_nano

CPU = torch.device("cpu")
NUM_RANKS = 2


def make(value: float, sharded: bool = False) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model whose weights all were ``value`` before one step, and its optimizer."""
    model = make_nano().model
    if sharded:
        shard(model, CPU, None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return model, optimizer


def on_ranks(root: Path, work: Callable[[Runtime, Events], None], doomed: tuple[int, int] | None = None) -> list[int]:
    """Run ``work`` on every rank and return their exit codes; where one dies the others are killed, as torchrun does.

    Args:
        doomed: a rank, and the event of its own at which it dies.
    """
    meeting = root / "meeting"
    meeting.unlink(missing_ok=True)

    def one(rank: int) -> Callable[[], None]:
        def run() -> None:
            dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=NUM_RANKS)
            events = Events(doomed[1] if doomed and doomed[0] == rank else None)
            events.install()
            work(Runtime(CPU, rank, NUM_RANKS, sharded=True), events)

        return run

    ranks = [in_child(one(rank)) for rank in range(NUM_RANKS)]
    codes: dict[int, int] = {}
    while len(codes) < NUM_RANKS:
        pid, status = os.wait()
        if pid not in ranks:  # a child of another test in this process
            continue
        codes[pid] = os.waitstatus_to_exitcode(status)
        if codes[pid]:
            for other in set(ranks) - set(codes):
                os.kill(other, signal.SIGKILL)
    return [codes[pid] for pid in ranks]


def save(folder: Path, step: int, value: float) -> Callable[[Runtime, Events], None]:
    def work(runtime: Runtime, events: Events) -> None:
        model, optimizer = make(value, sharded=True)
        checkpoints = Checkpoints(folder, 2, runtime)
        runtime.gather(None)
        events.on = True
        checkpoints.save(step, model, optimizer, {"value": value}, (), {"log": Extent(3, "ab")})
        events.on = False
        (folder.parent / f"events-{runtime.rank}").write_text(str(len(events.seen)))

    return work


def resumed(folder: Path) -> float | None:
    """The value in the checkpoint that one process would continue from, whose every weight was compared."""
    checkpoints = Checkpoints(folder, 2, Runtime(CPU))
    point = checkpoints.find_newest()
    assert point.is_intact
    assert point.losses == ()
    if point.step is None:
        return None
    model, optimizer = make(-1.0)
    value = checkpoints.load(point.step, model, optimizer)["value"]
    expected, of_it = make(value)
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(optimizer.state.values(), of_it.state.values(), strict=True):
        assert torch.equal(ours["exp_avg"], theirs["exp_avg"])
    assert all(path.suffix == "" for path in folder.iterdir())
    return float(value)


def num_events(root: Path, steps: tuple[int, int]) -> list[int]:
    """Events of each rank while the second of two checkpoints is saved; the state before is left in ``root/start``."""
    (root / "start").mkdir(parents=True)
    assert on_ranks(root, save(root / "start" / "checkpoints", steps[0], 1.0)) == [0] * NUM_RANKS
    (root / "count").mkdir()
    shutil.copytree(root / "start" / "checkpoints", root / "count" / "checkpoints")
    assert on_ranks(root, save(root / "count" / "checkpoints", steps[1], 2.0)) == [0] * NUM_RANKS
    return [int((root / "count" / f"events-{rank}").read_text()) for rank in range(NUM_RANKS)]


def survives(root: Path, step: int, rank: int, event: int) -> bool:
    """Kill one rank at its event: the checkpoint before or the new one is intact, and the next save succeeds."""
    folder = root / f"killed-{rank}-{event}" / "checkpoints"
    folder.parent.mkdir()
    shutil.copytree(root / "start" / "checkpoints", folder)
    codes = on_ranks(root, save(folder, step, 2.0), (rank, event))
    killed = codes[rank] == -signal.SIGKILL
    found = resumed(folder)
    again = on_ranks(root, save(folder, step, 3.0)) == [0] * NUM_RANKS
    return killed and found in (1.0, 2.0) and again and resumed(folder) == 3.0
