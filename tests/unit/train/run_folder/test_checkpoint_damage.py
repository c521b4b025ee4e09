"""Checkpoints that were flipped, exchanged, copied, linked or half deleted: the newest intact one is used."""

import json
import random
import shutil

import pytest
import torch

from heliostat.storage import Extent
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.run_folder.checkpoint_files import CheckpointError
from heliostat.train.run_folder.checkpoints import Checkpoints
from tests.support.kills import count_events, killed_at

CPU = Runtime(torch.device("cpu"))


def make(value=0.0):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.fill_(value)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def save(folder, step, keep=2):
    Checkpoints(folder, keep, CPU).save(step, *make(float(step)), {"value": step}, [{"x": 1}], {"log": Extent(3, "ab")})


def resume(folder, keep=2):
    """What a run would continue from: the point, and the state and first weight that it holds."""
    checkpoints = Checkpoints(folder, keep, CPU)
    point = checkpoints.find_newest()
    if point.step is None:
        return point, None
    model, optimizer = make(-1.0)
    state = checkpoints.load(point.step, model, optimizer)
    expected, _ = make(float(state["value"]))
    assert torch.equal(model.weight, expected.weight)
    return point, state["value"]


@pytest.fixture
def folder(tmp_path):
    for step in (2, 4):
        save(tmp_path / "checkpoints", step)
    return tmp_path / "checkpoints"


def test_it_comes_back_with_what_the_logs_held(folder):
    point, value = resume(folder)
    assert (point.step, value, point.losses) == (4, 4, ())
    assert point.logs == {"log": Extent(3, "ab")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json", "rollouts.pt", "manifest.json"])
def test_every_flip_is_found_and_the_one_before_is_used(folder, name):
    path = folder / "step_000004" / name
    raw, randomness = path.read_bytes(), random.Random(0)
    for position in randomness.sample(range(len(raw)), min(len(raw), 30)):
        flipped = bytearray(raw)
        flipped[position] ^= 1 << randomness.randrange(8)
        path.write_bytes(bytes(flipped))
        point, value = resume(folder)
        assert (point.step, value) == (2, 2)
        assert len(point.losses) == 1
        assert name in point.losses[0]
        assert "step 2 is intact" in point.losses[0]
    path.unlink()
    assert resume(folder)[1] == 2
    assert f"{name} is missing" in resume(folder)[0].losses[0]


def test_exchanged_folders_are_refused(folder):
    (folder / "step_000002").rename(folder / "x")
    (folder / "step_000004").rename(folder / "step_000002")
    (folder / "x").rename(folder / "step_000004")
    with pytest.raises(CheckpointError, match="renamed or exchanged"):
        resume(folder)


def test_a_checkpoint_that_rots_while_the_run_goes_on_is_not_gone_back_to(folder):
    checkpoints = Checkpoints(folder, 2, CPU)
    assert checkpoints.intact() == [2, 4]
    (folder / "step_000002" / "state.json").write_text("{}")
    assert checkpoints.intact() == [4]
    with pytest.raises(CheckpointError, match=r"state.json is not what was written"):
        checkpoints.load(2, *make())


def test_copies_links_and_other_names_are_left_alone(folder, tmp_path):
    for name in ("step_000004_backup", "step_000002_1", "step_4", "notes", "step_000009.partial.old"):
        shutil.copytree(folder / "step_000004", folder / name)
    (folder / "step_000006").symlink_to(folder / "step_000004")
    (folder / "step_000008").write_text("a file")
    (folder / "step_abc.partial").mkdir()
    others = {path.name for path in folder.iterdir()} - {"step_000002", "step_000004"}
    assert resume(folder)[0].step == 4
    save(folder, 5, keep=1)
    assert {path.name for path in folder.iterdir()} == others | {"step_000005"}


def test_after_a_rollback_later_steps_are_obsolete(folder):
    """The process dies between publishing the checkpoint it went back to and removing the later one."""
    later = shutil.copytree(folder / "step_000004", folder.parent / "later")
    save(folder, 2)
    assert not (folder / "step_000004").exists()
    later.rename(folder / "step_000004")
    assert resume(folder)[0].step == 2
    assert not (folder / "step_000004").exists()


def test_damaged_ones_do_not_push_out_intact_ones(folder):
    (folder / "step_000004" / "manifest.json").write_text("{}")
    save(folder, 5)
    assert Checkpoints(folder, 2, CPU).steps() == [2, 5]


def as_earlier_versions_wrote(folder):
    """No manifest, and a state that does not speak of one."""
    for path in folder.iterdir():
        (path / "manifest.json").unlink()
        state = json.loads((path / "state.json").read_text())
        del state["has_manifest"]
        (path / "state.json").write_text(json.dumps(state))


def test_one_of_an_earlier_version_is_read_whole_and_said_to_be_unchecked(folder):
    as_earlier_versions_wrote(folder)
    point, value = resume(folder)
    assert (point.step, value, point.is_intact) == (4, 4, True)
    assert len(point.losses) == 1
    assert "step_000004 is of an earlier version and has no digests" in point.losses[0]
    save(folder, 5)
    assert resume(folder)[0].losses == (), "the next one has digests"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json", "rollouts.pt"])
def test_a_torn_file_of_an_earlier_version_is_found(folder, name):
    as_earlier_versions_wrote(folder)
    path = folder / "step_000004" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    point, value = resume(folder)
    assert (point.step, value) == (2, 2)
    assert name in point.losses[0]
    assert "earlier version" in point.losses[1]


def test_exchanged_ones_of_an_earlier_version_are_refused(folder):
    as_earlier_versions_wrote(folder)
    shutil.rmtree(folder / "step_000002")
    (folder / "step_000004").rename(folder / "step_000002")
    with pytest.raises(CheckpointError, match="renamed or exchanged"):
        resume(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "keep"), [(4, 2), (4, 1), (2, 2), (6, 1)])
def test_killed_at_every_event_of_saving(tmp_path, step, keep):
    """A new step, the same step again, or an earlier one after a rollback: always one of the two states, never none."""
    for at in (2, 4):
        save(tmp_path / "start", at, keep)
    before, _ = resume(tmp_path / "start", keep)

    def again(folder):
        def work():
            Checkpoints(folder, keep, CPU).save(step, *make(50.0), {"value": 50}, (), {})

        return work

    shutil.copytree(tmp_path / "start", tmp_path / "count")
    num = count_events(again(tmp_path / "count"))
    assert num > 20
    seen = set()
    for event in range(1, num + 1, 1 if keep == 2 and step == 4 else 3):
        folder = tmp_path / str(event)
        shutil.copytree(tmp_path / "start", folder)
        killed_at(event, again(folder))
        point, value = resume(folder, keep)
        assert (point.step, value) in ((before.step, before.step), (step, 50)), event
        assert point.losses == ()
        assert all(path.suffix == "" for path in folder.iterdir())
        seen.add(value)
        shutil.rmtree(folder)
    assert seen == {before.step, 50}
