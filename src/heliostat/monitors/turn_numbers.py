"""Numbers of turns in keys of metrics, for code that only reads logs.

Left out: the metrics themselves (``turns``), which need torch.
"""

from __future__ import annotations

NUMBERS = ("1", "2", "3", "4+")
"""Numbers of turns in keys; the last one stands for all later turns."""


def number_of(turn: int) -> str:
    """Return the number of a turn (from 0) in keys.

    **Limits** One of ``NUMBERS`` for every turn, so that a long episode adds no keys.
    """
    return NUMBERS[min(turn, len(NUMBERS) - 1)]
