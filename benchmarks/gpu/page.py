"""The page of the kit's results: a Markdown section for each JSON file of a folder, tables made from its findings.

Left out: measuring (``kit``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NAME = "page.md"
DEVICES = {"cuda": "On a GPU", "cpu": "On a CPU"}
NOT_RUN = "Not run on a GPU: no such result is stored."


def write(folder: Path) -> None:
    """Write the page of a folder's results."""
    (folder / NAME).write_text(rendered({name: _read(folder / f"{name}.json") for name in DEVICES}))


def _read(path: Path) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


def rendered(results: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Render results by device."""
    parts = ["# The GPU kit's results", ""]
    for device, title in DEVICES.items():
        result = results.get(device)
        if result is not None:
            parts += [f"## {title}", "", *_section(result)]
        elif device == "cuda":
            parts += [f"## {title}", "", NOT_RUN, ""]
    return "\n".join(parts).rstrip() + "\n"


def _section(result: Mapping[str, Any]) -> list[str]:
    about = {key: value for key, value in result.items() if key != "cases"}
    lines = [*_bullets(about), "", "| case | device | status | seconds |", "| --- | --- | --- | --: |"]
    for name, case in result["cases"].items():
        lines.append(f"| {name} | {case['device']} | {_cell(case['status'])} | {case.get('seconds', '')} |")
    lines.append("")
    for name, case in result["cases"].items():
        if "findings" in case:
            lines += [f"### {name} ({case['device']})", "", *_findings(case["findings"])]
    return lines


def _findings(findings: Mapping[str, Any]) -> list[str]:
    """Render plain values as bullets, and lists or mappings of records as tables."""
    tables = {key: rows for key, value in findings.items() if (rows := _records(value))}
    plain = {key: value for key, value in findings.items() if key not in tables and value not in ([], {})}
    lines = [*_bullets(plain), ""] if plain else []
    for rows in tables.values():
        columns = list(dict.fromkeys(column for row in rows for column in row))
        lines += [
            f"| {' | '.join(column.replace('_', ' ') for column in columns)} |",
            "| " + " | ".join("---" for _ in columns) + " |",
            *("| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |" for row in rows),
            "",
        ]
    return lines


def _records(value: Any) -> list[Mapping[str, Any]]:
    """Return the rows of a table; empty where the value is none."""
    if isinstance(value, Sequence) and value and all(isinstance(each, Mapping) for each in value):
        return list(value)
    if isinstance(value, Mapping) and any(isinstance(each, Mapping) for each in value.values()):
        return [{"": name, **(each if isinstance(each, Mapping) else {"status": each})} for name, each in value.items()]
    return []


def _bullets(values: Mapping[str, Any]) -> list[str]:
    return [f"- {key.replace('_', ' ')}: {_text(value)}" for key, value in values.items()]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {each}" for key, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "; ".join(map(str, value))
    return str(value)


def _cell(value: Any) -> str:
    return _text(value).replace("|", "\\|").strip()
