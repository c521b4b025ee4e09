"""The section ``judge``: a model whose scores of completions are the reward, or a part of it.

Left out: the judges (``heliostat.train.judges``), and the use of their scores (``heliostat.tasks.judging``).
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from heliostat.config.sections.addresses import check_address
from heliostat.config.sections.base import Section

REWARD_MODEL, LANGUAGE_MODEL = "reward-model", "language-model"
"""The names of the shipped judges."""

OF_KIND = {
    REWARD_MODEL: ("path", "dtype", "label"),
    LANGUAGE_MODEL: (
        *("url", "model", "rubric", "rubric_file", "low", "high", "max_tokens", "timeout_s", "retries", "num_requests"),
        *("key_name", "prompt_price", "reply_price", "budget", "mode", "opponents"),
    ),
}
"""The settings of each shipped judge, which the others refuse; the first one says which model it is."""
OF_OWN = ("name", "settings", "import_from")
"""The settings of a judge of the user's own."""


class JudgeSection(Section):
    """A judge, whose scores of completions are the reward, or a part of it."""

    name: str = Field(
        "",
        description="your own judge 'my_module:MyJudge', or one that a package declares; empty: reward-model with "
        "judge.path, language-model with judge.url",
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="settings of your own judge")
    import_from: str = Field(
        "", description="folder of your own judge's module, besides the working directory; a recipe names its own"
    )
    path: str = Field("", description="folder or hub id of a reward model for sequence classification; empty: none")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="dtype of the reward model's weights; auto: bfloat16 where it is faster than float32"
    )
    url: str = Field(
        "", description="address of a language model that judges, before /v1/chat/completions (extra: server)"
    )
    model: str = Field("", description="name of that model on its server")
    rubric: str = Field("", description="what makes an answer good, for that model")
    rubric_file: str = Field("", description="text file with the rubric, in place of judge.rubric")
    mode: Literal["score", "pairwise"] = Field(
        "score", description="score: a grade for each completion; pairwise: its share of wins over others of its group"
    )
    opponents: int = Field(
        0, ge=0, description="pairwise: others that each completion is compared with, in both orders; 0: all"
    )
    low: float = Field(0.0, description="lowest grade that the model may give; its score is 0")
    high: float = Field(10.0, description="highest grade; its score is 1")
    max_tokens: int = Field(512, ge=1, description="tokens of one reply, the model's reasoning included")
    timeout_s: float = Field(60.0, gt=0, description="time limit of one attempt at a request in seconds")
    retries: int = Field(3, ge=0, description="retries of a request that failed for a reason that may pass")
    num_requests: int = Field(8, ge=1, description="requests at a time")
    key_name: str = Field("OPENAI_API_KEY", description="environment variable that holds the key, if one is needed")
    prompt_price: float = Field(0.0, ge=0, description="price of a million prompt tokens, for judge/cost")
    reply_price: float = Field(0.0, ge=0, description="price of a million reply tokens")
    budget: float = Field(0.0, ge=0, description="cost at which the run stops, in the currency of the prices; 0: none")
    label: str = Field(
        "", description="label of a reward model with several, whose probability is the score; empty: its one output"
    )
    weight: float = Field(1.0, gt=0, description="factor of the score in the reward")
    alone: bool = Field(
        True,
        description="the judge gives the whole reward, and verifiers or an environment only measure; false: it adds to "
        "theirs",
    )
    success_at: float = Field(
        0.5,
        description="score from which a completion counts as solved, in tasks without verifiers; in an environment, if "
        "it ended the episode without a reward or success",
    )
    max_unscored: float = Field(
        0.5, ge=0, lt=1, description="largest share of completions without a score; above it the run stops"
    )

    @property
    def kind(self) -> str:
        """The name of the judge, which ``judge.path`` and ``judge.url`` imply; empty: none."""
        return self.name or next((kind for kind, keys in OF_KIND.items() if getattr(self, keys[0])), "")

    @property
    def enabled(self) -> bool:
        """Return whether the recipe has a judge."""
        return bool(self.kind)

    @model_validator(mode="after")
    def _contradictions(self) -> Self:
        fields = type(self).model_fields
        changed = [key for key in fields if getattr(self, key) != fields[key].get_default(call_default_factory=True)]
        if changed and not self.enabled:
            raise ValueError(
                f"judge.{changed[0]} is only used with judge.path or judge.url or judge.name, which are empty"
            )
        models = [f"judge.{keys[0]}" for kind, keys in OF_KIND.items() if getattr(self, keys[0]) and kind != self.name]
        if len(models) + bool(self.name) > 1:
            named = [f"judge.name = '{self.name}'"] * bool(self.name) + models
            raise ValueError(f"{named[0]} and {named[1]} name two judges; set one of them to empty")
        own = OF_KIND.get(self.kind, OF_OWN)
        if self.enabled and not getattr(self, own[0]):
            raise ValueError(f"judge.name = '{self.name}' needs judge.{own[0]}")
        for keys in (*OF_KIND.values(), OF_OWN[1:]):
            ignored = [key for key in keys if key in changed and key not in own]
            if ignored:
                needed = keys[0] if keys in OF_KIND.values() else "name"
                raise ValueError(f"judge.{ignored[0]} is only used with judge.{needed}, which is empty")
        if self.url:
            self._check_language_model()
        return self

    def _check_language_model(self) -> None:
        check_address("judge.url", self.url, self.key_name)
        if not self.model:
            raise ValueError("judge.url needs judge.model, the name of the model on that server")
        if bool(self.rubric) == bool(self.rubric_file):
            raise ValueError("judge.url needs either judge.rubric or judge.rubric_file")
        ignored = ("low", "high") if self.mode == "pairwise" else ("opponents",)
        for key in ignored:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"judge.{key} has no effect with judge.mode = '{self.mode}'")
        if not self.low < self.high:
            raise ValueError(f"judge.low = {self.low:g} must be below judge.high = {self.high:g}")
        if self.budget and not (self.prompt_price or self.reply_price):
            raise ValueError("judge.budget needs judge.prompt_price or judge.reply_price")
