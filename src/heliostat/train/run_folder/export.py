"""A run's model as folders that plain transformers and PEFT load, from any number of ranks, read back before trusted.

    try_export   of the model before training, what is trained perturbed_weights: what could be lost is lost now
    export       of the model after training

Left out: what is in such a folder (``models.saving``, ``models.lora``) and how it is compared
(``models.checks.saved_model``).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from heliostat.config import ConfigError
from heliostat.models import LoadedModel, save_model
from heliostat.models.checks.saved_model import SavedDiffers, check_adapter, check_saved, trainer_logits
from heliostat.models.checks.weight_perturbation import perturbed_weights
from heliostat.models.lora import held, is_adapted, perturbed_adapters, save_adapter
from heliostat.models.saving import replacing
from heliostat.storage.errors import is_full
from heliostat.train.distributed.fsdp import full_state_dict, unsharded
from heliostat.train.distributed.ranks import RankLost, Runtime
from heliostat.types import Prompt

NUM_PROMPTS = 4


class ExportError(RuntimeError):
    """The trained model could not be saved, or what was saved is not what was trained."""


def export(
    loaded: LoadedModel, runtime: Runtime, folder: Path, prompts: Sequence[Prompt], adapter: Path | None = None
) -> None:
    """Save the model, adapters merged, and read it back; of cut weights every rank gives its part, the main one writes.

    Nothing appears under ``folder`` or ``adapter`` that was not read back and did not give the trainer's logits.

    Args:
        prompts: of the run's task; the first few are compared.
        adapter: where adapters go on their own, if there are any.

    Raises:
        ExportError: it could not be written, or does not come back.
    """
    try:
        _export(loaded, runtime, folder, prompts, adapter)
    except RankLost:
        raise
    except Exception as error:  # of any library on the way: hours of training end in a sentence and a whole folder
        raise ExportError(
            f"the model could not be saved to {folder}: {_said(error)}; the last checkpoint is complete, and the same "
            "command with the same --run tries again from there"
        ) from error


def try_export(
    loaded: LoadedModel, runtime: Runtime, folder: Path, prompts: Sequence[Prompt], resumes: bool = False
) -> None:
    """Go the whole way of ``export`` with the model as it is before training, in a place below ``folder``.

    Args:
        resumes: whether the run was trained in an earlier session; disk and packages may be others since.

    **Limits**: the model is afterwards what it was, bit for bit.

    Raises:
        ConfigError: this model, with these adapters, in this place, cannot be saved as what it is.
    """
    trial = Path(tempfile.mkdtemp(prefix=".trial-", dir=folder)) if runtime.is_main else folder
    seed = runtime.rank if runtime.sharded else 0
    trained = [held(each) for each in loaded.model.parameters() if each.requires_grad]
    try:
        with perturbed_adapters(loaded.model, seed), perturbed_weights(trained, seed):
            _export(loaded, runtime, trial / "model", prompts, trial / "adapter")
    except RankLost:
        raise
    except Exception as error:  # as above
        way_out = (
            "leave layers out of lora.layers" if is_adapted(loaded.model) else "train adapters instead (lora.rank)"
        )
        if isinstance(error, OSError) or is_full(error):
            way_out = "make room"
        nothing = "nothing more" if resumes else "nothing"
        raise ConfigError(
            f"{nothing} was trained, since the model of this run could not be saved as what it is: {_said(error)}; "
            f"{way_out}, or set train.try_export = false to train all the same"
        ) from error
    finally:
        if runtime.is_main:
            shutil.rmtree(trial, ignore_errors=True)


def _export(
    loaded: LoadedModel, runtime: Runtime, folder: Path, prompts: Sequence[Prompt], adapter: Path | None
) -> None:
    ids = [prompt.context_ids for prompt in prompts[:NUM_PROMPTS]]
    with unsharded(loaded.model):
        said = trainer_logits(loaded, ids)
    gathered_weights = full_state_dict(loaded.model)
    with runtime.raise_on_all_ranks():
        if not runtime.is_main:
            return
        weights = gathered_weights or loaded.model.state_dict()
        with ExitStack() as stack:
            beside = None
            if adapter is not None and is_adapted(loaded.model):
                beside = stack.enter_context(replacing(adapter))
                save_adapter(loaded.model, weights, beside)

            def check(partial: Path, written: Mapping[str, Tensor]) -> None:
                model = check_saved(loaded, partial, written, ids, said)
                if beside is not None:
                    check_adapter(model, beside, weights, ids, said)

            save_model(loaded, folder, weights, check)


def _said(error: Exception) -> str:
    """One line about an error, with its type where that is not one of ours."""
    line = str(error).strip().split("\n")[0].rstrip(".")
    return line if isinstance(error, SavedDiffers) else f"{type(error).__name__}: {line}"
