"""A console that lets no text act as terminal commands.

Left out: the printed contents (``cli.tables``, ``train.console.progress``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from heliostat.printed import visible


class SafeConsole(Console):
    """Rich's console, which makes all rendered text ``visible`` and keeps its own control sequences.

    **Limits**: rich lays out the original text, so a line with hidden characters may become longer than others.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, with hidden characters made visible in the text of segments."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)

    def render_str(self, text: str, **options: Any) -> Any:
        """Render text with rich's markup, made visible first, because rich silently drops some control characters."""
        return super().render_str(visible(text), **options)
