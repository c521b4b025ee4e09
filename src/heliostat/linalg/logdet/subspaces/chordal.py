"""Graphs as far as closed forms need them: chordality, clique trees and elimination orders, in linear time.

Maximum-cardinality search visits vertices so that a graph is chordal exactly if, in that order, the earlier
neighbours of every vertex are contained in those of the latest one among them (Tarjan & Yannakakis 1984); the same
walk yields the maximal cliques with their separators (Blair & Peyton 1993). Plain Python on adjacency lists:
a million edges take a few seconds, once per pattern. Left out: numbers (``pattern``, ``sparse``).

References:
    R. E. Tarjan, M. Yannakakis, SIAM J. Comput. 13 (1984) 566. J. R. S. Blair, B. Peyton (1993), "An introduction to
    chordal graphs and clique trees". Both from memory: reconstruction.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
Adjacency = list[list[int]]


@dataclass(frozen=True, slots=True)
class CliqueGroup:
    """Cliques of equal shape: row k is one clique, its separator from the cliques before it, and the rest of it."""

    separators: IntArray  # (cliques, separator size)
    residuals: IntArray  # (cliques, residual size)
    rank: IntArray  # (cliques,), order of discovery: a clique's separator lies in one of smaller rank


def adjacency(n: int, rows: IntArray, cols: IntArray) -> Adjacency:
    """Neighbour lists of the undirected graph with edges (rows[k], cols[k])."""
    ends, starts = np.concatenate([cols, rows]), np.concatenate([rows, cols])
    order = np.argsort(starts, kind="stable")
    cuts = np.cumsum(np.bincount(starts, minlength=n))[:-1]
    return [part.tolist() for part in np.split(ends[order], cuts)]


def maximum_cardinality_search(neighbours: Adjacency) -> list[int]:
    """Visit next whichever vertex has most visited neighbours; ties go to the latest seen."""
    n = len(neighbours)
    weight, visited = [0] * n, [False] * n
    order: list[int] = []
    buckets: list[list[int]] = [list(range(n - 1, -1, -1))]
    top = 0
    while len(order) < n:
        while not buckets[top]:
            top -= 1
        vertex = buckets[top].pop()
        if visited[vertex] or weight[vertex] != top:
            continue
        visited[vertex] = True
        order.append(vertex)
        for other in neighbours[vertex]:
            if not visited[other]:
                weight[other] += 1
                if weight[other] == len(buckets):
                    buckets.append([])
                buckets[weight[other]].append(other)
                top = max(top, weight[other])
    return order


def cliques(neighbours: Adjacency) -> list[CliqueGroup] | None:
    """List the maximal cliques of a chordal graph as (separator, residual), grouped by shape; ``None`` if not chordal.

    The separator of each clique is contained in one earlier clique, so that
    B = Σ_cliques A_cc⁻¹ - Σ_separators A_ss⁻¹ runs over exactly these pairs.
    """
    order = maximum_cardinality_search(neighbours)
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.arange(len(order))
    place = position.tolist()
    earlier: list[set[int]] = [set()] * len(order)
    found: list[tuple[list[int], list[int]]] = []
    previous = -1
    for rank, vertex in enumerate(order):
        known = {other for other in neighbours[vertex] if place[other] < rank}
        earlier[vertex] = known
        if known:
            latest = max(known, key=place.__getitem__)
            if not known - {latest} <= earlier[latest]:
                return None
        if len(known) > previous and found:
            found[-1][1].append(vertex)
        else:
            found.append((sorted(known), [vertex]))
        previous = len(known)
    return group_by_shape(found)


def components(n: int, rows: IntArray, cols: IntArray) -> IntArray:
    """Return a label per vertex, equal exactly within connected components."""
    parent = list(range(n))

    def root(vertex: int) -> int:
        while parent[vertex] != vertex:
            parent[vertex] = vertex = parent[parent[vertex]]
        return vertex

    for left, right in zip(rows.tolist(), cols.tolist(), strict=True):
        parent[root(left)] = root(right)
    return np.asarray([root(vertex) for vertex in range(n)], dtype=np.int64)


def group_by_shape(pairs: list[tuple[list[int], list[int]]]) -> list[CliqueGroup]:
    """Collect (separator, residual) pairs of equal sizes into index arrays, so that each shape is one batched solve."""
    groups: dict[tuple[int, int], list[int]] = {}
    for rank, (separator, residual) in enumerate(pairs):
        groups.setdefault((len(separator), len(residual)), []).append(rank)
    return [
        CliqueGroup(
            np.asarray([pairs[rank][0] for rank in ranks], dtype=np.int64).reshape(len(ranks), -1),
            np.asarray([pairs[rank][1] for rank in ranks], dtype=np.int64),
            np.asarray(ranks),
        )
        for ranks in groups.values()
    ]


def minimum_degree_fill(neighbours: Adjacency) -> list[tuple[int, int]]:
    """Edges to add so that the graph becomes chordal, by eliminating a vertex of least current degree each time.

    Limits: no edge is added to a forest. A greedy choice, not the minimum fill.
    """
    alive = [set(row) for row in neighbours]
    queue = [(len(row), vertex) for vertex, row in enumerate(alive)]
    heapq.heapify(queue)
    gone = [False] * len(alive)
    fill: list[tuple[int, int]] = []
    while queue:
        degree, vertex = heapq.heappop(queue)
        if gone[vertex] or degree != len(alive[vertex]):
            continue
        gone[vertex] = True
        around = sorted(alive[vertex])
        for k, left in enumerate(around):
            alive[left].discard(vertex)
            missing = [right for right in around[k + 1 :] if right not in alive[left]]
            for right in missing:
                alive[left].add(right)
                alive[right].add(left)
            fill.extend((left, right) for right in missing)
        for other in around:
            heapq.heappush(queue, (len(alive[other]), other))
    return fill
