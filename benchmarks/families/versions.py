"""Versions of transformers that ``pyproject.toml`` allows, each on families with every kind of memory.

    python benchmarks/families/versions.py [VERSION ...] [--families NAME ...] [--packages FOLDER] [--again]

Every version is installed into a folder that comes before this environment's packages; the rest (torch, peft, ...) is
this environment's. A FutureWarning is an error. ``results/versions.json`` is written after each
row, and what it holds is not run again without ``--again``. Exit code 1 where a cell of what was asked for is not
``works``. Without arguments: the lowest version of the range, the newest that the index has, and those in between that
changed what this project stands on (``BETWEEN``).

Left out: torch's range, which needs an environment of its own for every end (``lowest.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results" / "versions.json"
FAMILIES = ("llama", "gpt2", "mpt", "bloom", "gemma2", "mamba", "qwen3_moe", "deepseek_v3")
CELLS = ("build", "load", "sample", "score", "train", "save", "reload")
BETWEEN = ("5.4.0", "5.8.1", "5.10.4", "5.12.1", "5.16.1", "5.20.2")
LIMIT_S = 600


def stated_range() -> str:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return next(each.removeprefix("transformers") for each in dependencies if each.startswith("transformers"))


def lowest() -> str:
    """The lowest version of the range, in full: ``5.0`` is ``5.0.0``."""
    found = re.search(r">=([0-9.]+)", stated_range())
    assert found is not None
    return ".".join([*found[1].split("."), "0", "0"][:3])


def install(requirement: str, folder: Path) -> None:
    """Put a version and what it needs into a folder, torch left out."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", str(folder), f"transformers{requirement}"], check=True)


def row_of(family: str, folder: Path) -> dict[str, Any]:
    """One family with the transformers of one folder."""
    paths = os.pathsep.join([str(folder), str(ROOT / "src")])
    command = [sys.executable, str(HERE / "check.py"), family]
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONWARNINGS": "error::FutureWarning"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"family": family, "build": f"FAILS: more than {LIMIT_S} s"}
    if done.returncode == 0:
        row: dict[str, Any] = json.loads(done.stdout)
        return row
    last = [f"exit code {done.returncode}", *done.stderr.strip().splitlines()][-1]
    return {"family": family, "build": f"FAILS: {last[-300:]}"}


def bad_cells(row: dict[str, Any]) -> dict[str, str]:
    return {cell: row.get(cell, "not reached") for cell in CELLS if row.get(cell) != "works"}


def results() -> dict[str, dict[str, Any]]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def check(requirement: str, families: Sequence[str], packages: Path, again: bool) -> bool:
    """Try a version on these families, write results as they come, and return whether it does everything."""
    version = requirement.removeprefix("==")
    folder = packages / f"transformers-{version}"
    good = True
    for family in families:
        row = results().get(version, {}).get(family)
        if row is None or again:
            if not folder.is_dir():
                install(requirement, folder)
            row = row_of(family, folder)
            found = results()
            found.setdefault(version, {})[family] = row
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        bad = bad_cells(row)
        print(f"transformers {version}  {family:12}  {bad or 'works'}", flush=True)
        good = good and not bad
    return good


def newest() -> str:
    """The newest version of the range that the index has."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*pip, "-d", folder, f"transformers{stated_range()}"], check=True)
        return next(Path(folder).glob("transformers-*.whl")).name.split("-")[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("versions", nargs="*")
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--packages", type=Path, help="where versions are installed and kept")
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    wanted = args.versions or [lowest(), *BETWEEN, newest()]
    with tempfile.TemporaryDirectory() as temporary:
        packages = args.packages or Path(temporary)
        verdicts = [check(f"=={version}", args.families, packages, args.again) for version in wanted]
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
