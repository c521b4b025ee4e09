"""Report rows that could not be read, as sentences with places.

Left out: reading (``checking``, ``files``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from heliostat.cards import Card

_SHOWN = 20


@dataclass(slots=True, repr=False)
class RowIssues(Card):
    """Counts of rows read, and messages about rows that could not be.

    Attributes:
        messages: one sentence each, with the place; the first ``20`` of ``num_issues``.
    """

    num_read: int = 0
    num_issues: int = 0
    messages: list[str] = field(default_factory=list)

    def report(self, place: str, message: str) -> None:
        """Record a skipped item."""
        self.num_issues += 1
        if len(self.messages) < _SHOWN:
            self.messages.append(f"{place}: {message}")

    def lines(self) -> list[str]:
        """Return the messages as lines."""
        more = self.num_issues - len(self.messages)
        return self.messages + ([f"... and {more} more"] if more else [])
