"""Whether the frozen reference policy of a run is the one it began with.

Left out: what it is used for (``objectives``), and writing it (``train.trainer``).
"""

from __future__ import annotations

from pathlib import Path

from heliostat.storage import Damaged, check_folder
from heliostat.train.run_folder.checkpoint_files import CheckpointError


def reference_is_intact(folder: Path, step: int) -> bool:
    """Whether the frozen reference policy is what was written; at step 0 it can be written again.

    Raises:
        CheckpointError: it is not, and the weights at hand are trained ones, which must not take its place.
    """
    try:
        check_folder(folder)
    except Damaged as error:
        if step == 0:
            return False
        raise CheckpointError(
            f"the reference policy is lost ({error}), and the weights of step 0 are gone; restore {folder}, or start "
            "anew with another --run"
        ) from error
    return True
