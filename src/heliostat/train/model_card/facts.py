"""All that a model card is built from, and the model that a run began with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from heliostat.config import ConfigError, Recipe, load_recipe
from heliostat.models.loaded_model import BUILT_IN_NAMES, SMOLLM2
from heliostat.run_models import RECIPE, run_folder_of
from heliostat.train.evaluation.evaluate import Evaluation
from heliostat.train.model_card.names import id_in_code, is_hub_id, name_in_code, plain_name

SMOLLM2_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The id of the bundled model on the hub."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CardFacts:
    """All that a card is built from.

    Attributes:
        before, after: held-out results; ``before`` is ``None`` where they are lost.
        findings: names of the guard's rules whose findings stand at the end.
        is_chat: whether prompts went through the tokenizer's chat template.
        dtype: dtype of the saved weights.
    """

    recipe: Recipe
    before: Evaluation | None
    after: Evaluation
    findings: Sequence[str]
    is_chat: bool
    dtype: str

    @property
    def is_post_trained(self) -> bool:
        """Whether the run took more than supervised steps."""
        return self.recipe.train.num_steps > 0

    @property
    def is_before_base(self) -> bool:
        """Whether the results before training are those of the base model, and not of the end of a warm start."""
        return not (self.is_post_trained and self.recipe.warm_start.num_steps)


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The model that a run began with.

    Attributes:
        name: its last part, for titles.
        shown: a description without folders, as Markdown.
        hub_id: its id on the hub, if it comes from there.
        origin: the hub id of the model that it was trained from, if it is the model of another run.
        is_rounded: whether training began with rounded copies of the published weights.
    """

    name: str
    shown: str
    hub_id: str | None = None
    origin: str | None = None
    is_rounded: bool = False


def base_model(recipe: Recipe) -> BaseModel:
    """Describe the model that a recipe begins with."""
    path = recipe.model.path
    name = plain_name(path) or "A model"
    if path == SMOLLM2:
        return BaseModel(plain_name(SMOLLM2_ID), id_in_code(SMOLLM2_ID), SMOLLM2_ID, is_rounded=True)
    if path in BUILT_IN_NAMES:
        return BaseModel(
            name, f"Heliostat's built-in model {name_in_code(path)} (random weights of seed {recipe.run.seed})"
        )
    if (run := run_folder_of(path)) is not None:
        name = plain_name(str(run.resolve()))
        return BaseModel(name, f"the model of the run {name_in_code(name)}", origin=_origin(run))
    if is_on_hub(path):
        return BaseModel(name, id_in_code(path), path)
    return BaseModel(name, f"a model in a local folder, {name_in_code(path)}")


def is_on_hub(path: str) -> bool:
    """Return whether a path that was read successfully is a hub id, and no file or folder here."""
    return is_hub_id(path) and not Path(path).exists()


def _origin(run: Path) -> str | None:
    """Return the hub id at the start of a chain of runs, where their recipes are still there."""
    seen: set[Path] = set()
    following: Path | None = run
    recipe: Recipe | None = None
    while following is not None and following.resolve() not in seen:
        seen.add(following.resolve())
        try:
            recipe = load_recipe(str(following / RECIPE))
        except ConfigError:  # damaged, or of another version: then the card names no origin
            return None
        following = run_folder_of(recipe.model.path)
    return None if recipe is None or following is not None else base_model(recipe).hub_id
