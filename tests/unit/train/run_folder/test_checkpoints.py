"""What counts as a checkpoint: complete folders, whoever looks and whenever."""

import torch

from heliostat.train.distributed.ranks import Runtime
from heliostat.train.run_folder.checkpoints import Checkpoints

CPU = torch.device("cpu")


def test_one_that_is_being_written_is_none(tmp_path):
    """Another rank looks while the main one writes; a leftover of a killed run is removed by the main one alone."""
    for name in ("step_000002", "step_-00003", "step_000004.partial"):
        (tmp_path / name).mkdir()
    other = Checkpoints(tmp_path, 2, Runtime(CPU, 1, 2))
    assert other.steps() == [-3, 2]
    assert other.latest == 2
    assert (tmp_path / "step_000004.partial").exists()
    Checkpoints(tmp_path, 2, Runtime(CPU))
    assert not (tmp_path / "step_000004.partial").exists()


def test_a_folder_without_any(tmp_path):
    assert Checkpoints(tmp_path / "none", 2, Runtime(CPU)).latest is None
