"""The verifier processes of this process, as the system lists them."""

import os
from pathlib import Path


def worker_pids() -> list[int]:
    """Return the process ids of running verifier processes that this process has started, oldest first."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return sorted(pid for pid in pids if _is_own_worker(pid))


def _is_own_worker(pid: int) -> bool:
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:  # it has ended meanwhile
        return False
    return state != "Z" and int(parent) == os.getpid() and b"heliostat.tasks.verifier_pool.worker" in words
