"""Read what prime-rl gives to a custom loss and takes from it out of its source, and write it to prime_rl.json.

    git clone --branch v0.8.0 https://github.com/PrimeIntellect-ai/prime-rl
    python tests/reference/record_prime_rl.py prime-rl

Without a folder the installed package is read. Its source is parsed and not imported, since importing it needs a GPU's
packages. Left out: the losses themselves.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

FIXTURE = Path(__file__).with_name("prime_rl.json")
LOSS = Path("prime_rl/trainer/rl/loss.py")


def main(folders: list[str]) -> None:
    if folders:
        source = Path(folders[0]) / "src" / LOSS
        version = tomllib.loads((Path(folders[0]) / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    else:
        spec = importlib.util.find_spec("prime_rl")
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit("prime-rl is not installed; name the folder of a checkout")
        source = Path(spec.submodule_search_locations[0]).parent / LOSS
        version = importlib.metadata.version("prime-rl")
    record = {"version": version, **signatures(source.read_text(encoding="utf-8"))}
    FIXTURE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"prime-rl {version} -> {FIXTURE}")


def signatures(source: str) -> dict[str, Any]:
    """Return the fields of the two dataclasses in order, and the call of a custom loss."""
    tree = ast.parse(source)
    classes = {node.name: fields(node) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "custom_fn"]
    return {
        "LossInputs": classes["LossInputs"],
        "LossOutputs": classes["LossOutputs"],
        "calls": [ast.unparse(call) for call in calls],
    }


def fields(node: ast.ClassDef) -> list[dict[str, Any]]:
    """Return name, annotation and default of every field; a default of null: there is none."""
    return [
        {
            "name": ast.unparse(line.target),
            "annotation": ast.unparse(line.annotation),
            "default": None if line.value is None else ast.unparse(line.value),
        }
        for line in node.body
        if isinstance(line, ast.AnnAssign)
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
