"""Everything in the project that replaces something on the disk, to be killed at every event of it.

Left out: checkpoints (``test_checkpoint_damage.py``, ``tests/support/sharded.py``) and whole runs (``tests/torture``).
"""

import hashlib
import sqlite3
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from heliostat.config import build_recipe
from heliostat.control.training_run import save_model as save_lap
from heliostat.models import save_model
from heliostat.models.loading import smollm2
from heliostat.models.lora import add_adapters, save_adapter
from heliostat.models.saving import replacing
from heliostat.outputs import claim_folder
from heliostat.report.html.frame import framed, write_page
from heliostat.report.html.markup import element
from heliostat.storage import append_rows, extent_of, keep_rows, read_rows, recover_folder, replace_rows, truncate_rows
from heliostat.theory.plots import save as save_figure
from heliostat.traces import Bank, RowIssues, export_bank
from heliostat.traces.cuts import PrefixSource
from heliostat.train.data.prefixes import PrefixSources, kept_prefix_sources
from heliostat.train.run_folder.folder import RunFolder
from tests.support.kills import killed_at
from tests.support.nano import make_nano
from tests.support.traces import make_trace

ROWS = [{"step": number, "text": "等于几 \u2028 é" * 3} for number in range(6)]
RECIPE = build_recipe(
    {"task.name": "file", "task.path": "x.jsonl", "task.answer_column": "answer", "task.verifiers": [{"name": "exact"}]}
)


@dataclass(frozen=True)
class Replace:
    """One of them.

    Attributes:
        work: what is killed, given an empty folder that ``before`` has filled.
        before: leaves what is to be replaced; by default nothing.
        again: what the next process does before it reads; by default nothing.
        state: what a reader finds, without leftovers that no reader looks at; by default every file.
    """

    work: Callable[[Path], Any]
    before: Callable[[Path], Any] = lambda folder: None
    again: Callable[[Path], Any] = lambda folder: None
    state: Callable[[Path], Any] | None = None

    def found(self, folder: Path) -> Any:
        self.again(folder)
        return (self.state or everything)(folder)

    def survives(self, root: Path, event: int) -> bool:
        """Killed at ``event``, the old state or the new one is found; and done again, the new one."""
        ends = []
        for name in ("old", "new"):
            whole = root / name
            if not whole.exists():
                whole.mkdir(parents=True)
                self.before(whole)
                if name == "new":
                    self.work(whole)
            ends.append(self.found(whole))
        folder = root / f"killed-{event}"
        folder.mkdir()
        self.before(folder)
        killed_at(event, lambda: self.work(folder))
        found = self.found(folder)
        self.work(folder)
        return found in ends and self.found(folder) == ends[1]


def everything(folder: Path) -> dict[str, str]:
    """Digest of every file that is not being written."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith(".partial")]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def model(name: str) -> dict[str, Any]:
    return {
        "work": lambda folder: save_model(make_nano(seed=1), folder / name),
        "before": lambda folder: save_model(make_nano(seed=0), folder / name),
        "again": lambda folder: recover_folder(folder / name),
    }


def save_over(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the foreign file is kept
        save_model(make_nano(seed=1), folder / "model")


def foreign(folder: Path) -> None:
    save_model(make_nano(seed=0), folder / "model")
    (folder / "model" / "thesis.md").write_text("mine")


def kept(folder: Path) -> Any:
    """The model in its place, and whether the foreign file still is anywhere."""
    weights = hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()
    return weights, any(path.read_text() == "mine" for path in folder.rglob("thesis.md"))


def adapter(seed: int) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        loaded = make_nano(seed=seed)
        section = build_recipe({**RECIPE.model_dump(mode="json"), "lora.rank": 2}).lora
        add_adapters(loaded.model, section, seed=seed)
        with replacing(folder / "adapter") as partial:
            save_adapter(loaded.model, loaded.model.state_dict(), partial)

    return work


def convert(folder: Path) -> None:
    def write(gguf: Path, partial: Path) -> None:
        torch.save(torch.zeros(1000), partial / "model.bin")
        (partial / "config.json").write_text("{}")

    if not (folder / "cache").exists():  # the conversion itself takes half a minute
        smollm2.convert(Path("none.gguf"), folder / "cache", write)


def run_folder(folder: Path) -> None:
    RunFolder.open(folder / "run", RECIPE).lock.close()


def started(folder: Path) -> Any:
    """A run that has begun: the recipe only with the versions beside it, the versions only in a marked folder."""
    names = {path.name for path in (folder / "run").glob("*")} & {"heliostat-run.json", "versions.json", "recipe.toml"}
    return "recipe.toml" not in names or "versions.json" in names


def append(bank: Path, numbers: range) -> None:
    with Bank.open(bank) as opened:
        opened.append([make_trace(number) for number in numbers])


def traces(folder: Path) -> Any:
    with Bank.open(folder / "t.bank") as bank:
        return [repr(trace) for trace in bank], bank.query("PRAGMA integrity_check")[0][0]


def export(folder: Path, numbers: range = range(12)) -> None:
    bank = folder.parent / f"{folder.name}.bank"
    if not bank.exists():
        append(bank, numbers)
    with Bank.open(bank) as opened:
        export_bank(opened, str(folder / "out"), RowIssues(), rows_per_file=100)


def page(text: str) -> Callable[[Path], Any]:
    return lambda folder: write_page(folder / "r.html", framed("x", element("p", text), (), {}))


def figure(slope: int) -> Callable[[Path], Any]:
    return lambda folder: save_figure("line", lambda axes: axes[0].plot([0, slope]), 1, folder)


class Model:
    """What Stable-Baselines3's own ``save`` needs to be."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def save(self, file: Any) -> None:
        file.write(self.content)


def rows(work: Callable[[Path], Any]) -> Replace:
    """One of the ways in which a log is rewritten."""
    return Replace(
        lambda folder: work(folder / "log.jsonl"),
        lambda folder: append_rows(folder / "log.jsonl", ROWS),
        state=lambda folder: read_rows(folder / "log.jsonl").rows,
    )


def donors(folder: Path) -> None:
    kept_prefix_sources(folder / "prefixes.json", lambda: PrefixSources((PrefixSource("p", (1, 2, 3), 4),), 1.0, 0))


REPLACES = {
    "model export": Replace(**model("model")),
    "model export over a foreign file": Replace(
        save_over, foreign, lambda folder: recover_folder(folder / "model"), kept
    ),
    "adapter export": Replace(adapter(1), adapter(0), lambda folder: recover_folder(folder / "adapter")),
    "SmolLM2 cache": Replace(convert, again=lambda folder: recover_folder(folder / "cache")),
    "marker, versions and recipe": Replace(run_folder, state=started),
    "marker": Replace(lambda folder: claim_folder(folder / "run", "heliostat train")),
    "report": Replace(page("new"), page("old")),
    "figure": Replace(figure(2), figure(1)),
    "model of a race": Replace(
        lambda folder: save_lap(Model(b"new"), None, folder / "a-0"),
        lambda folder: save_lap(Model(b"old"), None, folder / "a-0"),
    ),
    "prefixes.json": Replace(donors),
    "trace bank, appended to": Replace(
        lambda folder: append(folder / "t.bank", range(20, 40)),
        lambda folder: append(folder / "t.bank", range(20)),
        state=traces,
    ),
    "trace bank, exported": Replace(export),
    "log, cut back": rows(lambda path: truncate_rows(path, first_rows(path))),
    "log, rows dropped": rows(lambda path: keep_rows(path, lambda row: row["step"] != 2)),
    "log, replaced": rows(lambda path: replace_rows(path, ROWS[1:3])),
}


def first_rows(path: Path) -> Any:
    return extent_of(path, lambda row: row["step"] < 3)


def torn_bank(root: Path, lengths: int) -> tuple[int, int]:
    """A bank's write-ahead log that ends anywhere, as a killed SQLite leaves it: whole transactions, in their order."""
    path = root / "whole.bank"
    held = sqlite3.connect(path)  # a second connection keeps the log from being folded into the file
    append(path, range(5))
    held.execute("SELECT count(*) FROM traces").fetchone()
    steps = [read_bank(path)]
    for start in (5, 10):
        append(path, range(start, start + 5))
        steps.append(read_bank(path))
    file, log = path.read_bytes(), path.with_name(path.name + "-wal").read_bytes()
    held.close()
    survived = 0
    for number in range(lengths):
        torn = root / f"torn-{number}.bank"
        torn.write_bytes(file)
        torn.with_name(torn.name + "-wal").write_bytes(log[: len(log) * (number + 1) // lengths])
        try:
            found = read_bank(torn)
        except Exception:  # before the first transaction there is no bank
            found = None
        survived += found in steps or (found in (None, []) and number < lengths - 1)
    return survived, lengths


def read_bank(path: Path) -> list[str]:
    with Bank.open(path) as bank:
        return [repr(trace) for trace in bank]
