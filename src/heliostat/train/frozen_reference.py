"""The frozen reference policy of objectives that need one: the weights at the start of post-training.

Left out: the objectives (``objectives``), and loading a folder as a policy (``model_bundle``).
"""

from __future__ import annotations

from pathlib import Path

from heliostat.storage import Damaged, check_folder, write_manifest
from heliostat.train.logprobs.policy import Policy
from heliostat.train.model_bundle import load_reference
from heliostat.train.run_context import RunContext
from heliostat.train.run_folder.checkpoint_files import CheckpointError
from heliostat.train.run_folder.export import export


def frozen_reference(context: RunContext, step: int) -> Policy:
    """Load the run's frozen reference policy; at step 0, save it first.

    Raises:
        CheckpointError: its folder is damaged, and ``step`` is not 0.
    """
    folder, loaded, runtime = context.folder.reference, context.bundle.loaded, context.runtime
    if not runtime.run_on_main(lambda: reference_is_intact(folder, step)):
        export(loaded, runtime, folder, context.export_prompts())
        runtime.run_on_main(lambda: write_manifest(folder, {"step": step}))
    return load_reference(context.recipe, folder, runtime, loaded.model.dtype)


def reference_is_intact(folder: Path, step: int) -> bool:
    """Return whether the frozen reference policy is intact; at step 0 it can be written again.

    Raises:
        CheckpointError: it is damaged, and the weights in memory are trained ones, which must not replace it.
    """
    try:
        check_folder(folder)
    except Damaged as error:
        if step == 0:
            return False
        raise CheckpointError(
            f"the reference policy is lost ({error}), and so are the weights of step 0; restore {folder}, or start a "
            "new run with another --run"
        ) from error
    return True
