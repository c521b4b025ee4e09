"""A limit on the memory of a worker process, relative to its size after loading.

Left out: wall-clock limits, which only the parent can keep (``verifier_pool.worker_handle``, ``environments.process``).
"""

from __future__ import annotations

import os
from pathlib import Path


class MemoryLimit:
    """A limit on this process's address space, relative to its size when the limit was created.

    **Limits**: on systems without ``/proc`` (macOS) nothing is limited.
    """

    def __init__(self) -> None:
        self._loaded = _address_space()
        self._allowed = 0

    def allow(self, memory_mb: int) -> None:
        """Allow ``memory_mb`` MiB above the size after loading; more raises ``MemoryError``."""
        if self._loaded is None or memory_mb == self._allowed:
            return
        import resource

        self._allowed = memory_mb
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = self._loaded + memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _address_space() -> int | None:
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else None
