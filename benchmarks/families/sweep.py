"""Every causal family of transformers through load, sample, score, train, save and reload.

    python benchmarks/families/sweep.py [FAMILY ...] [--again]

Every family runs in a process of its own with a time limit; ``results/families.json`` is written after each, and what
it holds is not run again (``--again`` runs the named ones, or all). The page: ``python benchmarks/families/page.py``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
from pathlib import Path
from typing import Any

from check import checked

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "families.json"
LIMIT_S, MAX_BYTES = 300, 6 * 2**30


def families() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def results() -> dict[str, dict[str, Any]]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def row_of(family: str) -> dict[str, Any]:
    """A family's row, from a forked process: a crash or an endless loop in one ends that one alone."""
    fork = multiprocessing.get_context("fork")
    receiving, sending = fork.Pipe(duplex=False)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
        sending.send(checked(family))

    process = fork.Process(target=work)
    process.start()
    sending.close()
    try:
        if not receiving.poll(LIMIT_S):
            return {"family": family, "build": f"FAILS: more than {LIMIT_S} s"}
        row: dict[str, Any] = receiving.recv()
        return row
    except EOFError:
        process.join()
        return {"family": family, "build": f"FAILS: exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("families", nargs="*")
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    for family in args.families or families():
        if family in results() and not args.again:
            continue
        row = row_of(family)
        rows = results() | {family: row}
        RESULTS.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")
        cells = {key: value for key, value in row.items() if isinstance(value, str) and value != "works"}
        print(family, cells, flush=True)


if __name__ == "__main__":
    main()
