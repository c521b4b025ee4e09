"""The section ``teacher``: a model whose distributions the policy is to match.

Left out: the distances (``heliostat.objectives.distillation``).
"""

from __future__ import annotations

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from heliostat.config.sections.addresses import check_address
from heliostat.config.sections.base import Section

OF_SERVED_TEACHERS = ("engine", "model", "timeout_s", "retries", "num_requests", "key_name")
"""Settings of a teacher on a server, which one in this process refuses."""


class TeacherSection(Section):
    """A teacher, whose distributions the policy is to match on its own samples (on-policy distillation)."""

    path: str = Field(
        "", description="folder, hub id or run folder of the teacher; 'self': the policy itself, with teacher.hint"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="dtype of the teacher's weights; auto: bfloat16 where the hardware supports it natively"
    )
    url: str = Field(
        "", description="address of a server with the teacher, in place of teacher.path, before /v1 (extra: server)"
    )
    engine: Literal["vllm", "sglang"] = Field("vllm", description="kind of that server, by whose routes it is asked")
    model: str = Field("", description="name of the teacher on its server")
    timeout_s: float = Field(120.0, gt=0, description="time limit of one attempt at a request in seconds")
    retries: int = Field(3, ge=0, description="retries of a request that failed for a reason that may pass")
    num_requests: int = Field(8, ge=1, description="requests at a time, of up to 16 completions each")
    key_name: str = Field(
        "",
        description="environment variable that holds the server's key; empty: VLLM_API_KEY or SGLANG_API_KEY, by "
        "teacher.engine",
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
        """Return whether the recipe has a teacher."""
        return bool(self.path or self.url)

    @property
    def is_self(self) -> bool:
        """Return whether the policy teaches itself."""
        return self.path == "self"

    @model_validator(mode="after")
    def _contradictions(self) -> Self:
        changed = [key for key, spec in type(self).model_fields.items() if getattr(self, key) != spec.default]
        if changed and not self.enabled:
            raise ValueError(f"teacher.{changed[0]} is only used with teacher.path or teacher.url, which are empty")
        if urlsplit(self.path).scheme in ("http", "https"):
            raise ValueError(
                f"teacher.path = '{self.path}' is a server; set teacher.url to it, and teacher.model to its name"
            )
        if self.path and self.url:
            raise ValueError("teacher.path and teacher.url name two teachers; set one of them to empty")
        ignored = [key for key in (("dtype",) if self.url else OF_SERVED_TEACHERS) if key in changed]
        if ignored:
            raise ValueError(
                f"teacher.{ignored[0]} is only used with teacher.{'path' if self.url else 'url'}, which is empty"
            )
        if self.url:
            self._check_server()
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

    def _check_server(self) -> None:
        check_address("teacher.url", self.url, self.key_name or f"{self.engine.upper()}_API_KEY")
        if not self.model:
            raise ValueError("teacher.url needs teacher.model, the name of the model on that server")
        if self.kind != "sampled":
            raise ValueError(
                f"teacher.kind = '{self.kind}' needs the teacher's whole distribution at every token, and a server "
                "gives the probability of the sampled one; set teacher.kind = 'sampled', an unbiased estimate of the "
                "reverse KL, or load the teacher into this process with teacher.path"
            )
