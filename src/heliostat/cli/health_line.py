"""One observation of ``heliostat doctor``: a fact of this installation or machine, and the way out if it is a problem.

Left out: looking (``installation``, ``machine``), and printing (``doctor``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from heliostat.printed import visible_line

State = Literal["ok", "absent", "warning", "broken"]


@dataclass(frozen=True, slots=True)
class HealthLine:
    """One line of the result.

    Attributes:
        name: the thing, like ``torch`` or ``memory``.
        text: what was found, in a phrase.
        state: ``absent``: optional and not here; ``warning``: commands work, some with less; ``broken``: needed.
        way_out: a command or an instruction; empty where nothing is to be done.
        values: the same in numbers and names, for programs.
    """

    name: str
    text: str
    state: State = "ok"
    way_out: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """Format the fact and its way out on one line."""
        mark = "" if self.state == "ok" else self.state
        told = f"{self.text}: {self.way_out}" if self.way_out else self.text
        return f"{mark:<8} {self.name:<16} {visible_line(told)}"
