"""The bases of a recipe's sections.

Left out: the sections themselves.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen part of a recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, strict=True, allow_inf_nan=False)


class NamedSection(BaseModel):
    """A section whose ``name`` selects an implementation, and whose other keys belong to that implementation."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The keys that belong to the named implementation."""
        return dict(self.__pydantic_extra__ or {})
