"""A run folder in a few kilobytes, and a folder made of it again that ``heliostat diagnose`` reads.

Left out: transcripts, checkpoints, and numbers that no rule reads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from heliostat.config import Recipe
from heliostat.tracking import read_metrics

RECORDED = Path(__file__).parents[2] / "tests" / "wrecks"
LEFT_OUT = (
    *("time/", "speed/", "compute/", "text/zlib", "text/distinct", "policy/ratio", "policy/chi", "policy/entropy_"),
    *(
        "policy/renyi",
        "policy/solved",
        "policy/log_",
        "policy/mean",
        "policy/saturated",
        "eval/",
        "guard/",
        "feedback/",
    ),
    *("answers/collision", "answers/effective", "answers/top", "panel/calibration"),
)
EVALUATED = ("phase", "num_samples", "num_success", "mean_reward", "num_failures", "num_cut", "max_length")
EVENT = ("step", "action", "taken", "text", "meaning", "rule")
SETTINGS = {
    "rollout": ("prompts_per_step", "group_size", "max_new_tokens", "temperature"),
    "warm_start": ("num_steps",),
    "optimizer": ("name", "lr"),
    "objective": ("name",),
    "train": ("num_steps",),
}


def record_of(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """What the rules read of a run, column by column, five digits each."""
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row["step"] > 0]
    named = dict.fromkeys(key for row in rows for key in row)
    keys = [key for key in named if not key.startswith(LEFT_OUT) and ":" not in key]
    summary = json.loads((folder / "summary.json").read_text())
    events = [row for row in read_metrics(folder / "events.jsonl") if row["action"] in ("went back", "stop")]
    evaluations = [[_short(row.get(key)) for key in EVALUATED] for row in read_metrics(folder / "evals.jsonl")]
    return {
        "settings": {
            name: {key: getattr(getattr(recipe, name), key) for key in keys} for name, keys in SETTINGS.items()
        },
        "summary": {key: summary.get(key) for key in ("status", "reason", "longest_solution")},
        "events": [{key: row[key] for key in EVENT} for row in events],
        "evals": evaluations,
        "metrics": {key: [_short(row[key]) if key in row else "" for row in rows] for key in keys},
    }


def unpack(name: str, folder: Path) -> Path:
    """The recorded run as a run folder."""
    record = json.loads((RECORDED / f"{name}.json").read_text())
    columns = record["metrics"]
    steps = range(len(columns["step"])) if columns else ()
    metrics = [{key: values[i] for key, values in columns.items() if values[i] != ""} for i in steps]
    evaluations = [
        {"step": 0, "task": "file", "problem_id": str(number)}
        | {
            key: value
            for key, value in zip(EVALUATED, row, strict=False)
            if value is not None and not isinstance(value, bool)
        }
        for number, row in enumerate(record["evals"])
    ]
    folder.mkdir(parents=True)
    _write(folder / "metrics.jsonl", metrics)
    _write(folder / "evals.jsonl", evaluations)
    _write(folder / "events.jsonl", record["events"])
    (folder / "transcripts.jsonl").touch()
    (folder / "summary.json").write_text(json.dumps(record["summary"]))
    (folder / "versions.json").write_text("{}")
    tables = [f"[{section}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
              for section, keys in record["settings"].items()]  # fmt: skip
    (folder / "recipe.toml").write_text("\n".join(tables))
    return folder


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value
