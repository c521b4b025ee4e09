"""``heliostat chat``: lines in, answers out, of one model or of two side by side; it works in a pipe as well.

Left out: sampling the answers (``train.evaluation.chat``).
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from heliostat.printed import visible_line

if TYPE_CHECKING:
    from heliostat.cli.tables import Page

MIN_WIDTH = 60  # columns of a terminal that two answers fit in side by side
NEW, QUIT = "/new", "/quit"


def chat(args: Namespace) -> int:
    """Run ``heliostat chat``."""
    from heliostat.cli.tables import Page, Text
    from heliostat.config import ConfigError
    from heliostat.rollout import SamplingSettings
    from heliostat.run_models import recipe_for
    from heliostat.train.evaluation.chat import open_chat

    if len(args.models) > 2:
        raise ConfigError(f"a chat is with one model, or with two to compare, not {len(args.models)}")
    overrides = [*args.overrides, *([f"--rollout.max_new_tokens={args.tokens}"] if args.tokens else [])]
    recipe = recipe_for(args.models, args.recipe, overrides)
    temperature = recipe.rollout.temperature if args.temperature is None else args.temperature
    opened = open_chat(args.models, recipe, SamplingSettings(0.0 if args.greedy else temperature), args.alone)
    page = Page()
    names = [speaker.name for speaker in opened.speakers]
    page.print(Text(f"{' and '.join(names)}; {NEW} begins anew, {QUIT} or Ctrl-D ends", style="dim"))
    if not all(speaker.has_memory for speaker in opened.speakers):
        page.print(Text("without a chat template each line is answered by itself", style="dim"))
    for line in _lines(page):
        if line == NEW:
            opened.forget()
            continue
        try:
            answers = opened.answers(line)
        except ValueError as error:  # the conversation has outgrown a context
            page.print(Text(f"{visible_line(str(error))}; {NEW} begins anew"))
            continue
        _print_answers(page, names, answers)
    return 0


def _lines(page: Page) -> Iterator[str]:
    """Yield the user's lines; those of a pipe are printed, so that its output reads as a conversation."""
    from heliostat.cli.tables import Text

    is_typed = sys.stdin.isatty()
    while True:
        if is_typed:
            try:
                line = input("> ")
            except EOFError:
                page.print()
                return
        elif not (line := sys.stdin.readline()):
            return
        line = line.strip()
        if line == QUIT:
            return
        if line and not is_typed:
            page.print(Text(f"> {line}", style="bold"))
        if line:
            yield line


def _print_answers(page: Page, names: Sequence[str], answers: Sequence[str]) -> None:
    """Print answers in columns on a terminal that is wide enough, else one after another."""
    from rich.table import Table

    from heliostat.cli.tables import Text

    if len(answers) == 1:
        page.print(Text(answers[0]))
    elif page.is_terminal and page.width >= MIN_WIDTH:
        table = Table.grid(padding=(0, 2), expand=True)
        for _ in answers:
            table.add_column(ratio=1, overflow="fold")
        table.add_row(*(Text(name, style="dim") for name in names))
        table.add_row(*map(Text, answers))
        page.print(table)
    else:
        for name, answer in zip(names, answers, strict=True):
            page.print(Text(f"{name.partition(' (')[0]}: {answer}"))
    page.print()
