"""The table of ``docs/model-families.md``, from ``results/families.json``; with ``--write`` it is put into the page.

python benchmarks/families/page.py [--write]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "model-families.md"
RESULTS = HERE / "results" / "families.json"
CELLS = ("load", "sample", "score", "train", "save", "reload")
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def rows() -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return [found[family] for family in sorted(found)]


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def verdict(row: dict[str, Any]) -> str:
    """``all six work``, or the first cell that does not, in its own words."""
    for name in ("build", *CELLS):
        if (said := row.get(name, "not reached")) != "works":
            return f"{name} {cell(said)}"
    return "works"


def table() -> str:
    built = [row for row in rows() if row["build"] == "works"]
    whole = sum(verdict(row) == "works" for row in built)
    lines = [
        f"{len(built)} families build from a small configuration; {whole} of them do all six.",
        "",
        "| family | load, sample, score, train, save, reload | decoded with | scored with |",
        "| --- | --- | --- | --- |",
    ]
    for row in built:
        ways = (row.get("sampled_with", ""), row.get("scored_with", ""))
        lines.append(f"| {row['family']} | {verdict(row)} | {ways[0]} | {ways[1]} |")
    others = [row for row in rows() if row["build"] != "works"]
    lines += ["", "Not built from a small configuration:", ""]
    lines += [f"- {row['family']}: {cell(row['build'].removeprefix('not built: '))}" for row in others]
    return "\n".join(lines)


def filled(text: str) -> str:
    """The page with today's table in it."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table())


if __name__ == "__main__":
    main()
