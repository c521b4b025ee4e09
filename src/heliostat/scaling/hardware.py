"""Ceilings of a machine, and the share of them that a program is assumed to reach.

Left out: latency. Every formula here counts bytes and FLOPs, so small messages come out too fast.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hardware:
    """Nodes of equal GPUs.

    Attributes:
        memory_bytes: of one GPU.
        flops_per_s: dense products in the compute dtype, of one GPU.
        memory_bytes_per_s: of one GPU's own memory.
        node_bytes_per_s: one GPU to others of its node, one direction.
        network_bytes_per_s: one GPU's adapter to other nodes, one direction.
        folder_bytes_per_s: a folder that all machines see, written or read; no data sheet's number but an assumption.
        compute_share, memory_share, link_share: share of each ceiling that is reached; see docs/explanation/scaling.md.
    """

    name: str
    gpus_per_node: int
    memory_bytes: float
    flops_per_s: float
    memory_bytes_per_s: float
    node_bytes_per_s: float
    network_bytes_per_s: float
    folder_bytes_per_s: float = 2e9
    compute_share: float = 0.4
    memory_share: float = 0.6
    link_share: float = 0.8

    def compute_s(self, flops: float, num_gpus: int) -> float:
        """Estimate the seconds of matrix products that ``num_gpus`` share."""
        return flops / (num_gpus * self.flops_per_s * self.compute_share)

    def read_s(self, num_bytes: float, num_gpus: int) -> float:
        """Estimate the seconds of reading from memory, where each of ``num_gpus`` reads its part."""
        return num_bytes / (num_gpus * self.memory_bytes_per_s * self.memory_share)

    def link_s(self, num_bytes: float, num_ranks: int) -> float:
        """Estimate the seconds in which each of ``num_ranks`` sends and receives ``num_bytes`` in a collective.

        Collectives between nodes run over all adapters of a node at once: what enters a node is handed on inside it, so
        a rank moves its bytes at ``min(node, gpus_per_node * network)``.

        **Limits**: one rank, 0.
        """
        if num_ranks == 1:
            return 0.0
        bus = self.node_bytes_per_s
        if num_ranks > self.gpus_per_node:
            bus = min(bus, self.gpus_per_node * self.network_bytes_per_s)
        return num_bytes / (bus * self.link_share)

    def folder_s(self, num_bytes: float) -> float:
        """Estimate the seconds of writing, or of reading, a file that all machines see."""
        return num_bytes / self.folder_bytes_per_s
