"""The minimum cut against every cut there is."""

import itertools
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.numerics.minimum_cut import minimum_cut

NODES = 7
SOURCE, SINK = 5, 6
ARCS = st.dictionaries(
    st.tuples(st.integers(0, NODES - 1), st.integers(0, NODES - 1)).filter(lambda arc: arc[0] != arc[1]),
    st.one_of(st.just(inf), st.floats(0, 50)),
    min_size=1,
    max_size=16,
)


@settings(max_examples=200, deadline=None)
@given(ARCS)
def test_no_cut_is_cheaper(arcs):
    def price(side):
        return sum(c for (a, b), c in arcs.items() if side[a] and not side[b])

    sides = [(*inner, True, False) for inner in itertools.product((False, True), repeat=NODES - 2)]
    best = min(map(price, sides))
    found = minimum_cut(NODES, [(a, b, c) for (a, b), c in arcs.items()], SOURCE, SINK)
    assert found[SOURCE]
    if best < inf:
        assert not found[SINK]
        assert price(found) == pytest.approx(best, abs=1e-4)


def test_large_capacities_are_scaled():
    found = minimum_cut(3, [(0, 1, 3e15), (1, 2, 2e15)], 0, 2)
    assert found.tolist() == [True, True, False]


def test_ties_go_to_the_sink():
    assert minimum_cut(3, [(0, 1, 5.0), (1, 2, 5.0)], 0, 2).tolist() == [True, False, False]
