"""The parts of a run's state: one list for saving, resuming and rolling back; a real run does what it declares."""

import json

import pytest
import torch
from safetensors.torch import load_file

from heliostat.config import build_recipe
from heliostat.train import run_recipe
from heliostat.train.run_state import Part, RunState, attribute, surviving
from heliostat.train.trainer import Trainer
from heliostat.train.update.updater import Updater
from tests.unit.train.data.test_prefixes import prepared  # noqa: F401  (a fixture: a recipe, and a bank of solutions)


def plain(value):
    return json.loads(json.dumps(value))


class Watched:
    """Rollbacks of a run, and what each part of its state was right before and after them."""

    def __init__(self, monkeypatch):
        self.seen = []
        real = RunState.roll_back

        def roll_back(state, step, optimizer):
            folder = state.checkpoints.path_of(step)
            stored = json.loads((folder / "state.json").read_text())
            weights, kept = load_file(folder / "model.safetensors"), torch.load(folder / "optimizer.pt")
            before = self.saved(state)
            real(state, step, optimizer)
            own = dict(state.model.named_parameters())
            assert all(torch.equal(own[name], tensor) for name, tensor in weights.items())
            assert str(optimizer.state_dict()) == str(kept)
            self.seen.append((stored, before, self.saved(state), state.parts))

        monkeypatch.setattr(RunState, "roll_back", roll_back)

    @staticmethod
    def saved(state):
        return {part.name: plain(part.save()) for part in state.parts if part.name not in ("seconds", "rollouts")}


@pytest.mark.slow
def test_after_a_rollback_every_part_is_what_its_entry_says(prepared, tmp_path, monkeypatch):  # noqa: F811
    _, recipe = prepared
    changes = {"prefix.name": "targeted", "train.focus": 0.5, "guard.mode": "act", "guard.panel_every": 0,
               "guard.baseline_steps": 2, "guard.baseline_start": 0, "eval.final_samples": 1}  # fmt: skip
    ticks = {"now": 0}
    run = Updater.run

    def poisoned(self, *args, **options):
        ticks["now"] += 1
        if ticks["now"] == 4:
            with torch.no_grad():
                next(iter(self.safe_step.parameters)).fill_(float("nan"))
        return run(self, *args, **options)

    monkeypatch.setattr(Updater, "run", poisoned)
    watched = Watched(monkeypatch)
    result = run_recipe(build_recipe(recipe.model_dump(mode="json"), changes), tmp_path / "run")
    assert result.status == "finished", result.reason
    ((stored, before, after, parts),) = watched.seen
    for part in parts:
        if part.name not in after:
            continue
        if part.after_rollback == "restored":
            assert after[part.name] == stored[part.name], part.name
        elif part.after_rollback == "survives":
            assert after[part.name] == before[part.name], part.name
            assert part.why
    moved = {name for name in after if before[name] != stored[name]}
    assert {"prefixes", "curriculum", "judgement", "num_tokens", "ledger", "guard"} <= moved


@pytest.mark.slow
def test_what_is_restored_is_all_but_the_work_done_the_guards_record_and_the_rollouts(prepared, tmp_path, monkeypatch):  # noqa: F811
    """A part that is added is restored unless somebody decides otherwise, here and in its entry."""
    parts = []
    monkeypatch.setattr(Trainer, "run", lambda self: parts.extend(self.progress.state.parts))
    with pytest.raises(TypeError):
        run_recipe(prepared[1], tmp_path / "run")
    outlive = {part.name: part.after_rollback for part in parts if part.after_rollback != "restored"}
    work = ("num_tokens", "teacher_tokens", "seconds", "ledger")
    assert outlive == dict.fromkeys((*work, "guard", "before"), "survives") | {"rollouts": "dropped"}


# -- the list itself ---------------------------------------------------------------------------------------------------


class Checkpointed:
    """A checkpoint folder in memory."""

    def __init__(self):
        self.kept, self.dropped = {}, []

    def save(self, step, model, optimizer, state, rollouts, logs):
        self.drop_after(step)
        self.kept[step] = {**plain(state), "rollouts": list(rollouts)}

    def load(self, step, model, optimizer):
        return dict(self.kept[step])

    def drop_after(self, step):
        self.kept = {kept: state for kept, state in self.kept.items() if kept <= step}


class Box:
    value = 0
    total = 0
    queue = ()


def state_of(box, checkpoints):
    parts = [
        attribute("value", box, "value"),
        surviving(attribute("total", box, "total"), "it counts work"),
        Part("rollouts", lambda: list(box.queue), lambda queue: setattr(box, "queue", tuple(queue)), "dropped",
             "of another policy", lambda: setattr(box, "queue", ())),
    ]  # fmt: skip
    return RunState(checkpoints, None, parts)


def test_saving_resuming_and_rolling_back_agree_on_the_parts():
    box, checkpoints = Box(), Checkpointed()
    state = state_of(box, checkpoints)
    box.value, box.total, box.queue = 1, 10, (1,)
    state.save(2, None)
    box.value, box.total, box.queue = 2, 20, (2, 3)
    state.save(4, None)
    box.value, box.total, box.queue = 3, 30, (4,)
    state.roll_back(2, None)
    assert (box.value, box.total, box.queue) == (1, 30, ())
    assert list(checkpoints.kept) == [2, 4]  # a process that dies now comes to this rollback once more

    resumed = Box()
    state_of(resumed, checkpoints).resume(2, None)
    assert (resumed.value, resumed.total, resumed.queue) == (1, 10, (1,))
    state.save(2, None)
    assert list(checkpoints.kept) == [2]


def test_parts_that_outlive_a_rollback_say_why_and_names_differ():
    box = Box()
    with pytest.raises(ValueError, match="part 'total' needs a reason"):
        surviving(attribute("total", box, "total"), "")
    with pytest.raises(ValueError, match="needs a reason"):
        Part("queue", list, print, "dropped", "of another policy")
    with pytest.raises(ValueError, match="same name"):
        RunState(Checkpointed(), None, [attribute("value", box, "value")] * 2)
