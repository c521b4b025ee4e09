"""A console through which no text reaches the terminal as commands.

Left out: what is printed (``cli.tables``, ``train.console.progress``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from heliostat.printed import visible


class SafeConsole(Console):
    """Rich's console; all text in what it renders is made ``visible``, its own control sequences stay.

    **Limits**: the layout is that of the text before, so that a line with hidden characters may be longer than others.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, with hidden characters shown in the text of segments."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)

    def render_str(self, text: str, **options: Any) -> Any:
        """Text with rich's markup; made visible first, because rich drops some controls in silence."""
        return super().render_str(visible(text), **options)
