"""Run every adapter inside its installed framework on the shared batch, and write what came out to adapters.json.

    pip install -e '.[peers]' and see record_peers.py for verl's own dependencies
    python tests/reference/record_adapters.py

Results of a framework that is not installed here are kept as they were. Left out: comparing them
(``tests/conformance/test_adapters.py``).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path

from adapter_cases import CASES, RUNNERS, SEED, evaluate
from peer_cases import draw

FIXTURE = Path(__file__).with_name("adapters.json")


def main() -> None:
    record = json.loads(FIXTURE.read_text()) if FIXTURE.exists() else {"versions": {}, "losses": {}}
    available = [peer for peer in RUNNERS if importlib.util.find_spec(peer) is not None]
    record["checksum"] = draw(SEED).checksum
    record["versions"] |= {peer: importlib.metadata.version(peer) for peer in available}
    record["losses"] |= {case.key: evaluate(case) for case in CASES if case.peer in available}
    FIXTURE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{len(record['losses'])} losses of {', '.join(available)} -> {FIXTURE}")


if __name__ == "__main__":
    main()
