"""Graph algorithms against networkx."""

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.linalg import SparsityPattern
from heliostat.linalg.logdet.subspaces import chordal


@st.composite
def graphs(draw):
    n = draw(st.integers(1, 14))
    density = draw(st.floats(0, 1))
    seed = draw(st.integers(0, 10_000))
    return networkx.gnp_random_graph(n, density, seed=seed)


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_chordality_cliques_and_separators(graph):
    pattern = SparsityPattern.from_graph(graph)
    assert pattern.is_chordal == networkx.is_chordal(graph)
    if not pattern.is_chordal:
        return
    found, separators = set(), 0
    for group in pattern.clique_groups:
        for separator, residual in zip(group.separators.tolist(), group.residuals.tolist(), strict=True):
            found.add(frozenset(separator + residual))
            separators += 1
            assert not set(separator) & set(residual)
    maximal = {frozenset(clique) for clique in networkx.find_cliques(graph)}
    assert found == maximal
    assert separators == len(maximal)
    residuals = np.concatenate([group.residuals.ravel() for group in pattern.clique_groups])
    assert sorted(residuals.tolist()) == list(range(pattern.n))  # every vertex belongs to exactly one residual


@settings(max_examples=100, deadline=None)
@given(graphs())
def test_fill_makes_any_graph_chordal(graph):
    pattern = SparsityPattern.from_graph(graph)
    fill = chordal.minimum_degree_fill(pattern.neighbours)
    assert not any(graph.has_edge(*pair) for pair in fill)
    assert len(fill) == len({frozenset(pair) for pair in fill})
    filled = networkx.Graph(graph)
    filled.add_edges_from(fill)
    assert networkx.is_chordal(filled)
    if networkx.is_forest(graph):
        assert fill == []


def test_a_cycle_needs_n_minus_three_fill_edges():
    pattern = SparsityPattern(20, [(i, (i + 1) % 20) for i in range(20)])
    assert len(chordal.minimum_degree_fill(pattern.neighbours)) == 17


@given(graphs())
def test_components(graph):
    labels = chordal.components(len(graph), *SparsityPattern.from_graph(graph).edges)
    parts = {frozenset(np.flatnonzero(labels == label).tolist()) for label in set(labels.tolist())}
    assert parts == {frozenset(part) for part in networkx.connected_components(graph)}


@pytest.mark.parametrize(
    "pattern",
    [SparsityPattern.banded(9, 3), SparsityPattern.tree([-1, 0, 0, 2, 2, -1, 5]), SparsityPattern.banded(4, 3)],
)
def test_constructors_that_know_their_cliques_agree_with_the_search(pattern):
    searched = SparsityPattern(pattern.n, np.stack(pattern.edges, 1))

    def cliques(groups):
        return {frozenset(row) for group in groups for row in np.hstack([group.separators, group.residuals]).tolist()}

    known = cliques(pattern.clique_groups)
    assert cliques(searched.clique_groups) == {clique for clique in known if not any(clique < other for other in known)}
