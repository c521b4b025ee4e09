"""The tables of ``docs/reference/model-families.md``, from ``results``; with ``--write`` they are put into the page.

python benchmarks/families/page.py [--write]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "reference" / "model-families.md"
RESULTS = HERE / "results" / "families.json"
CELLS = ("load", "sample", "score", "train", "save", "reload")
VERSIONS = HERE / "results" / "versions.json"


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
    """Families that do everything, by the way they are decoded and scored; then every other family with its reason."""
    built = [row for row in rows() if row["build"] == "works"]
    ways: dict[tuple[str, str], list[str]] = {}
    for row in built:
        if verdict(row) == "works":
            ways.setdefault((row["sampled_with"], row["scored_with"]), []).append(row["family"])
    lines = [
        f"{len(built)} families build from a small configuration; {sum(map(len, ways.values()))} of them do all six.",
        "",
        "| decoded with | scored with | families |",
        "| --- | --- | --- |",
        *(
            f"| {decoded} | {scored} | {len(names)}: {', '.join(names)} |"
            for (decoded, scored), names in sorted(ways.items(), key=lambda item: -len(item[1]))
        ),
        "",
        "| family | first cell that does not work |",
        "| --- | --- |",
        *(f"| {row['family']} | {verdict(row)} |" for row in built if verdict(row) != "works"),
    ]
    others = [row for row in rows() if row["build"] != "works"]
    lines += ["", "Not built from a small configuration:", ""]
    lines += [f"- {row['family']}: {cell(row['build'].removeprefix('not built: '))}" for row in others]
    return "\n".join(lines)


def versions() -> str:
    """One row a version of transformers, one column a family."""
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(VERSIONS.read_text(encoding="utf-8"))
    names = list(dict.fromkeys(family for by_family in found.values() for family in by_family))
    lines = [f"| transformers | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for version in sorted(found, key=lambda text: tuple(map(int, text.split(".")))):
        cells = (verdict(found[version][name]) if name in found[version] else "not run" for name in names)
        lines.append(f"| {version} | {' | '.join(cells)} |")
    return "\n".join(lines)


TABLES = {"families": table, "versions": versions}


def filled(text: str) -> str:
    """The page with today's tables in it."""
    for name, made in TABLES.items():
        begin, end = (f"<!-- {name}: {place} -->" for place in ("begin", "end"))
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}\n\n{made()}\n\n{end}{rest.partition(end)[2]}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table(), versions(), sep="\n\n")


if __name__ == "__main__":
    main()
