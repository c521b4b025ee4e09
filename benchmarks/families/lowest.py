"""The low ends of every range of core dependencies that ``pyproject.toml`` states, in one environment.

    python benchmarks/families/lowest.py FOLDER

Makes a virtual environment in FOLDER (what is there is used again) with exactly the lowest versions, runs the demo for
two steps and the unit tests of ``FOLDERS``. Exit code 1 where either fails.

Left out: extras, and tests that need them.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("config", "models", "objectives", "optim", "rollout", "storage", "monitors")
DEMO = (
    *("--warm_start.num_steps", "8", "--run.num_threads", "1", "--train.num_steps", "2"),
    *("--task.num_heldout", "20", "--eval.num_problems", "20", "--eval.final_samples", "1"),
)
TOOLS = ("pytest", "pytest-timeout", "hypothesis", "beartype")


def lowest() -> list[str]:
    """``name==version`` for every core dependency, ``torch`` first."""
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return [re.sub(r">=([0-9.]+).*", r"==\1", each) for each in stated]


def prepare(folder: Path) -> Path:
    """The environment's interpreter."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    torch, *rest = lowest()
    subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, *rest, *TOOLS, "reasoning-gym>=0.1.20"], check=True)  # the demo's task
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tests", nargs="+", default=FOLDERS)
    args = parser.parse_args()
    python = str(prepare(args.folder))
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    tests = [str(ROOT / "tests" / "unit" / name) for name in args.tests]
    with tempfile.TemporaryDirectory() as work:
        demo = subprocess.run([python, "-m", "heliostat", "train", "demo", *DEMO], cwd=work, env=environment)
    unit = subprocess.run([python, "-m", "pytest", *tests], cwd=ROOT, env=environment)
    return int(bool(demo.returncode or unit.returncode))


if __name__ == "__main__":
    sys.exit(main())
