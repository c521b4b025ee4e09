"""Report rows that could not be read, as sentences with places.

Left out: reading (``checking``, ``files``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

_SHOWN = 20


@dataclass(slots=True)
class Findings:
    """Counts of rows read, and messages about rows that could not be.

    Attributes:
        problems: one sentence each, with the place; the first ``20`` of ``num_problems``.
    """

    num_read: int = 0
    num_problems: int = 0
    problems: list[str] = field(default_factory=list)

    def report(self, place: str, message: str) -> None:
        """Record a skipped item."""
        self.num_problems += 1
        if len(self.problems) < _SHOWN:
            self.problems.append(f"{place}: {message}")

    def lines(self) -> list[str]:
        """Return the messages as lines."""
        more = self.num_problems - len(self.problems)
        return self.problems + ([f"... and {more} more"] if more else [])
