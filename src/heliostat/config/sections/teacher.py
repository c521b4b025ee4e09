"""The section ``teacher``: a model whose distributions the policy is to match.

Left out: the distances (``heliostat.objectives.distillation``).
"""

from __future__ import annotations

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from heliostat.config.sections.base import Section


class TeacherSection(Section):
    """A teacher, whose distributions the policy is to match on its own samples (on-policy distillation)."""

    path: str = Field(
        "", description="folder, hub id or run folder of the teacher; 'self': the policy itself, with teacher.hint"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="dtype of the teacher's weights; auto: bfloat16 where the hardware supports it natively"
    )
    kind: Literal["sampled", "reverse-kl", "forward-kl", "jsd"] = Field(
        "sampled",
        description="distance of a token; sampled: reverse KL from the sampled token alone; the others: over the whole "
        "vocabulary",
    )
    weight: float = Field(1.0, gt=0, description="weight of the distance in the loss, in reward units per nat")
    beta: float = Field(0.5, gt=0, lt=1, description="weight of the teacher in jsd; towards 0 forward, 1 reverse KL")
    alone: bool = Field(
        True, description="train on the teacher alone, and only measure rewards; false: add it to the objective's loss"
    )
    hint: Literal["none", "answer", "solution"] = Field(
        "none", description="column of the problem that only the teacher sees, after the question"
    )
    hint_text: str = Field("\nA right solution: {hint}", description="text of the hint, with {hint} in it")

    @property
    def enabled(self) -> bool:
        """Whether the recipe has a teacher."""
        return bool(self.path)

    @property
    def is_self(self) -> bool:
        """Whether the policy teaches itself."""
        return self.path == "self"

    @model_validator(mode="after")
    def _contradictions(self) -> Self:
        changed = [key for key, spec in type(self).model_fields.items() if getattr(self, key) != spec.default]
        if changed and not self.enabled:
            raise ValueError(f"teacher.{changed[0]} is only used with teacher.path, which is empty")
        if urlsplit(self.path).scheme in ("http", "https"):
            raise ValueError(
                f"teacher.path = '{self.path}' is a server, and teachers run in this process alone; give a model's "
                "folder or hub id"
            )
        if self.path == "tiny":
            raise ValueError("teacher.path = 'tiny' is a model with random weights; give the folder of a trained one")
        if self.is_self and self.hint == "none":
            raise ValueError(
                "teacher.path = 'self' without a hint is the policy itself and teaches nothing; set teacher.hint = "
                "'answer' or 'solution'"
            )
        if self.is_self and self.dtype != "auto":
            raise ValueError("teacher.dtype is not used with teacher.path = 'self', which has the policy's weights")
        if "beta" in changed and self.kind != "jsd":
            raise ValueError(f"teacher.beta is only used with teacher.kind = 'jsd' (now '{self.kind}')")
        if "{hint}" not in self.hint_text:
            raise ValueError(f"teacher.hint_text = {self.hint_text!r} must contain {{hint}}")
        if "hint_text" in changed and self.hint == "none":
            raise ValueError("teacher.hint_text is only used with teacher.hint = 'answer' or 'solution' (now 'none')")
        return self
