"""``heliostat control``, with a progress bar per algorithm and seed.

Left out: training (``heliostat.control.race``) and the page (``heliostat.report.control_page``).
"""

from __future__ import annotations

import tomllib
from argparse import Namespace
from collections.abc import Iterable
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any, Self


def control(args: Namespace) -> int:
    """Run ``heliostat control``: train on a gymnasium environment, several algorithms and seeds in parallel."""
    settings = read_settings(args.settings)
    from heliostat.cli.tables import Page, print_control
    from heliostat.control.race import check_race, race
    from heliostat.control.runs import read_control
    from heliostat.report.control_page import write_control_page
    from heliostat.storage import new_folder

    check_race(args.env, args.algo, settings)
    stem = f"{args.env.replace('/', '-')}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = args.run_dir or new_folder(Path("runs") / stem)
    with Bars(args.steps) as bars:
        race(args.env, args.algo, args.steps, args.seeds, folder, settings, args.processes, bars.show)
    page = write_control_page(folder)
    print_control(read_control(folder))
    Page().print(f"run folder  {folder}\npage        {page}", markup=False, soft_wrap=True)
    return 0


def read_settings(words: Iterable[str]) -> dict[str, Any]:
    """Parse ``key=value`` words; a value is read as TOML, and a bare word is text.

    Raises:
        ConfigError: a word without ``=``.
    """
    from heliostat.config import ConfigError

    settings = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set takes key=value, not '{word}'")
        try:
            settings[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key] = text
    return settings


class Bars(AbstractContextManager["Bars"]):
    """Live bars on a terminal, plain lines everywhere else."""

    def __init__(self, num_steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.num_steps, self.tasks = num_steps, dict[str, Any]()
        self.console = Console(highlight=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[at]}"),
        )
        self.progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def show(self, algo: str, seed: int, row: dict[str, float]) -> None:
        """Show the result of one evaluation."""
        name, at = f"{algo} seed {seed}", f"return {row['return']:.1f}"
        if not self.console.is_terminal:
            self.console.print(f"{name}  {row['step']:.0f}/{self.num_steps}  {at}  {row['cpu_s']:.0f} CPU s")
            return
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=self.num_steps, at=at)
        self.progress.update(self.tasks[name], completed=row["step"], at=at)
