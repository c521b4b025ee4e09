"""The ends of the range of transformers that ``pyproject.toml`` states, tried on families with every kind of memory.

    python benchmarks/families/versions.py [VERSION ...]

Every version is installed into a temporary folder that comes before this environment's packages; the rest (torch,
peft, ...) is this environment's. A FutureWarning about a name we use is an error. Exit code 1 where a cell is not
``works``; without arguments the lowest version of the range and the newest that the index has.

Left out: torch's range, which needs an environment of its own for every end.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FAMILIES = ("llama", "gpt2", "mpt", "gemma2", "mamba", "qwen3_moe")
CELLS = ("build", "load", "sample", "score", "train", "save", "reload")


def stated_range() -> str:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return next(each.removeprefix("transformers") for each in dependencies if each.startswith("transformers"))


def ends() -> list[str]:
    """What pip is asked for: exactly the lowest version, and whatever is newest in the range."""
    found = re.search(r">=([0-9.]+)", stated_range())
    assert found is not None
    return [f"=={found[1]}", stated_range()]


def check(requirement: str, folder: Path) -> bool:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", str(folder), f"transformers{requirement}"], check=True)
    paths = os.pathsep.join([str(folder), str(ROOT / "src")])
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONWARNINGS": "error:`past_key_values`:FutureWarning"}
    good = True
    for family in FAMILIES:
        done = subprocess.run(
            [sys.executable, str(HERE / "check.py"), family],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        row = json.loads(done.stdout) if done.returncode == 0 else {"build": done.stderr[-300:]}
        bad = {cell: row.get(cell, "not reached") for cell in CELLS if row.get(cell) != "works"}
        print(f"transformers {row.get('transformers', requirement)}  {family:10}  {bad or 'works'}", flush=True)
        good = good and not bad
    return good


def main() -> int:
    wanted = [f"=={version}" for version in sys.argv[1:]] or ends()
    with tempfile.TemporaryDirectory() as folder:
        verdicts = [check(each, Path(folder) / str(index)) for index, each in enumerate(wanted)]
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
