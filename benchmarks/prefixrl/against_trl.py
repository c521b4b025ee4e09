"""A training step behind long prefixes against TRL's tuned GRPOTrainer, which gets prompt and prefix as its prompt.

    python benchmarks/prefixrl/against_trl.py --trl-python PYTHON

The race of ``benchmarks/race_trl`` on its ``prefix`` workload (192 prompt tokens, answers of 24 on average and 64 at
most, groups of 8), with results of its own. CPU seconds per sampled token, sides taking turns.

Left out: what the race leaves out.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "race_trl"))

from race import Entry, race  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", default=sys.executable, help="interpreter that has TRL")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        laps = race(Entry("5M", "prefix"), ("heliostat", "trl tuned"), Path(folder), args)
    timed = [lap for lap in laps if lap["step"] > 1]
    medians = {
        side: statistics.median(lap["cpu_s"] / lap["tokens"] for lap in timed if lap["contender"] == side)
        for side in ("heliostat", "trl tuned")
    }
    results = {"cpu_s_per_token": medians, "ratio": medians["trl tuned"] / medians["heliostat"], "laps": laps}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "against_trl.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({key: results[key] for key in ("cpu_s_per_token", "ratio")}, indent=1))


if __name__ == "__main__":
    main()
