"""Open a recipe's judge, before anything is sampled.

Left out: the judges (``reward_model``, ``language_model``, ``own``), and the use of their scores
(``heliostat.tasks.judging``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from heliostat.config import ConfigError, JudgeSection, Recipe, named_by
from heliostat.config.sections.judge import LANGUAGE_MODEL, REWARD_MODEL
from heliostat.extras import require
from heliostat.models.loading.hub import read_classifier
from heliostat.named_imports import find
from heliostat.rollout.server.client import Server
from heliostat.run_models import model_of
from heliostat.tasks import Judging, Task
from heliostat.tasks.judging import Judge
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.judges.language_model import LanguageModelJudge, Prices, Question
from heliostat.train.judges.own import check_scorer, open_own
from heliostat.train.judges.pairs import PairQuestion
from heliostat.train.judges.questions import ScoreQuestion
from heliostat.train.judges.reply_cache import ReplyCache
from heliostat.train.judges.reward_model import RewardModel, label_of


def open_judge(recipe: Recipe, tasks: Sequence[Task], runtime: Runtime, replies: Path | None = None) -> Judging | None:
    """Load the recipe's judge; ``None`` if it has none, or nothing to judge.

    Without steps of training, only tasks without verifiers need it.

    Args:
        replies: folder of a language model's replies; ``None``: they are not kept.

    Raises:
        ConfigError: the judge cannot be opened, or a reward model's score is not one number.
    """
    section = recipe.judge
    if not recipe.environment.name:  # which measures success
        _refuse_lone_success(section, tasks)
    if not section.enabled or (recipe.train.num_steps == 0 and all(task.verifiers for task in tasks)):
        return None
    success_at = section.success_at if section.mode == "score" else math.inf  # a share of wins is no success
    return Judging(
        make_judge(recipe, runtime, replies), section.weight, section.alone, success_at, section.max_unscored
    )


def make_judge(recipe: Recipe, runtime: Runtime, replies: Path | None = None) -> Judge:
    """Open the judge that a recipe names.

    Raises:
        ConfigError: see ``open_judge``.
    """
    section = recipe.judge
    found = find("judge", section.kind, JUDGES, section.import_from)
    if section.kind in JUDGES:
        return JUDGES[section.kind](recipe, runtime, replies)
    return open_own(found, section.name, section.settings)


def check_own_judge(section: JudgeSection) -> None:
    """Refuse a judge of the user's own that cannot be imported, is none, or does not take its settings.

    Raises:
        ConfigError: it is one of these.
    """
    if section.enabled and section.kind not in JUDGES:
        check_scorer(find("judge", section.kind, JUDGES, section.import_from), section.name, section.settings)


def _refuse_lone_success(section: JudgeSection, tasks: Sequence[Task]) -> None:
    alone = [task.name for task in tasks if not task.verifiers]
    if section.mode == "pairwise" and alone:
        raise ConfigError(
            f"task '{alone[0]}' has no verifiers, and judge.mode = 'pairwise' says which of two completions is better, "
            "not whether one is right; add verifiers to the task, or set judge.mode = 'score'"
        )


def describe_judge(judging: Judging) -> str:
    """Describe in a line the judge, and what becomes of its scores."""
    use = "its score is the reward" if judging.alone else "its score is added to the reward of the task"
    factor = "" if judging.weight == 1 else f", times {judging.weight:g}"
    return f"judge: {judging.judge.name}; {use}{factor}"


def _reward_model(recipe: Recipe, runtime: Runtime, _: Path | None) -> Judge:
    section = recipe.judge
    try:
        model, tokenizer, context_length = read_classifier(model_of(section.path), section.dtype, runtime.device)
    except ConfigError as error:
        raise named_by("judge.path", error) from error
    label = label_of(model, section.label, section.path)
    return RewardModel(model, tokenizer, section.path, context_length, label, recipe.train.tokens_per_microbatch)


def _language_model(recipe: Recipe, runtime: Runtime, replies: Path | None) -> Judge:
    section = recipe.judge
    require("judge.url", "server", "httpx2")
    server = Server(
        section.url.rstrip("/"),
        section.timeout_s,
        section.retries,
        os.environ.get(section.key_name, ""),
        key_name=section.key_name,
        title="judge",
        url_setting="judge.url",
    )
    num_ranks = runtime.world_size
    return LanguageModelJudge(
        server,
        section.model,
        _question(section),
        ReplyCache(replies, runtime.rank),
        section.num_requests,
        section.max_tokens,
        Prices(section.prompt_price, section.reply_price, section.budget / num_ranks),
        num_ranks,
    )


OpenJudge = Callable[[Recipe, Runtime, Path | None], Judge]

JUDGES: dict[str, OpenJudge] = {REWARD_MODEL: _reward_model, LANGUAGE_MODEL: _language_model}
"""The functions that open the shipped judges, by name."""


def _question(section: JudgeSection) -> Question:
    rubric = _rubric(section)
    if section.mode == "pairwise":
        return PairQuestion(rubric, section.opponents)
    return ScoreQuestion(rubric, section.low, section.high)


def _rubric(section: JudgeSection) -> str:
    if section.rubric:
        return section.rubric
    try:
        text = Path(section.rubric_file).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"judge.rubric_file = '{section.rubric_file}' cannot be read: {error}") from error
    if not text:
        raise ConfigError(f"judge.rubric_file = '{section.rubric_file}' is empty")
    return text
