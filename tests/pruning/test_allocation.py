"""Budgets spread over blocks, against trying everything."""

from __future__ import annotations

from itertools import pairwise, product
from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.pruning.allocation import allocate
from onnxopt.pruning.costs import Axis, Costs
from onnxopt.pruning.selection import Path


def chain(widths: list[int]) -> Costs:
    """Layers one after the other, each as wide as a block: cost_i = kept_i * kept_(i+1); the ends are fixed."""
    labels, first = [], 1
    for n in widths:
        labels.append(np.arange(first, first + n))
        first += n
    ends = [np.zeros(3, np.intp), *labels, np.zeros(5, np.intp)]
    terms = [(float(len(a) * len(b)), [Axis(a), Axis(b)]) for a, b in pairwise(ends)]
    return Costs(labels, terms, first - 1)


def path(block: int, n: int, errors: list[float]) -> Path:
    """One class after the other."""
    gone = np.arange(len(errors))
    return Path((block,), (n - gone)[:, None].astype(np.float64), np.array(errors), gone[1:], gone)


def test_costs_are_products_of_widths() -> None:
    costs = chain([4, 6])
    assert costs.total(costs.full) == 3 * 4 + 4 * 6 + 6 * 5
    assert costs.total(np.array([2.0, 3.0])) == 3 * 2 + 2 * 3 + 3 * 5
    np.testing.assert_allclose(costs.saved(costs.full, [0, 1], np.array([[2.0, 3.0]])), [66 - 27])
    np.testing.assert_allclose(costs.saved(costs.full, [0], np.array([[3.0], [1.0]])), [9, 27])
    assert costs.neighbours[0].tolist() == [0, 1]


def test_what_no_block_changes_is_fixed() -> None:
    costs = Costs([np.array([1, 2])], [(10.0, [Axis(np.zeros(4, np.intp))]), (6.0, [Axis(np.array([1, 0, 2]))])], 2)
    assert costs.fixed == 10
    assert costs.total(np.array([1.0])) == pytest.approx(10 + 6 * 2 / 3)


def test_factors_need_not_be_proportional() -> None:
    stairs = ((0.0, 0.5, 0.6, 1.0), (0.0, 0.5, 1.0, 1.0))
    costs = Costs([np.arange(1, 11)], [(8.0, [Axis(np.arange(1, 11), stairs)])], 10, fixed=3.0)
    assert costs.total(np.array([6.0])) == pytest.approx(11)
    np.testing.assert_allclose(costs.saved(costs.full, [0], np.array([[7.0], [5.0], [2.0]])), [0, 4, 6.4])


def test_a_flat_curve_goes_first() -> None:
    found = allocate([path(0, 4, [0, 0.5, 1, 2]), path(1, 6, [0, 0, 0, 3])], chain([4, 6]), 48)
    assert found.kept.tolist() == [4, 4]
    assert found.way[-1] == (12 + 16 + 20, 0.0)


def test_a_rise_before_a_flat_stretch_is_looked_past() -> None:
    found = allocate([path(0, 8, [0, 1, 1, 1, 1, 1, 1]), path(1, 6, [0, 0.9])], chain([8, 6]), 60)
    assert found.kept.tolist() == [2, 6]


def test_a_budget_that_cannot_be_met_takes_all() -> None:
    assert allocate([path(0, 4, [0, 1])], chain([4]), 1).kept.tolist() == [3]
    assert allocate([], chain([]), 1).kept.tolist() == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 1.0))
def test_near_the_best_there_is(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    widths = rng.integers(2, 6, 3).tolist()
    rises = [np.concatenate(([0], np.cumsum(rng.random(n - 1)))).tolist() for n in widths]
    paths = [path(b, n, rise) for b, (n, rise) in enumerate(zip(widths, rises, strict=True))]
    costs = chain(widths)
    limit = share * costs.total(costs.full)
    found = allocate(paths, costs, limit)
    able = [k for k in product(*(p.kept[:, 0] for p in paths)) if costs.total(np.array(k)) <= limit + 1e-9]
    total = costs.total(found.kept)
    assert (total <= limit + 1e-9) == bool(able)
    if able:
        at = [[rise[int(n - k)] for rise, n, k in zip(rises, widths, kept, strict=True)] for kept in able]
        mine = found.way[-1][1]
        # Greedy: not always the best of all, never far from it.
        assert min(map(sum, at)) - 1e-9 <= mine <= min(map(sum, at)) + 1.5
    assert all(a[0] >= b[0] - 1e-9 for a, b in zip(found.way[:-1], found.way[1:-1], strict=False))


@pytest.mark.parametrize("stream", [False, True])
def test_thousands_of_blocks_take_no_time(stream: bool) -> None:
    """In a row, or all on one stream; in seconds, where counting all savings anew after every step takes minutes."""
    rng = np.random.default_rng(0)
    widths = [16] * 2000
    if stream:
        labels = [np.arange(1 + 16 * b, 17 + 16 * b) for b in range(2000)]
        terms = [(256.0, [Axis(labels[0]), Axis(label)]) for label in labels[1:]]
        costs = Costs(labels, terms, 32000)
    else:
        costs = chain(widths)
    paths = [path(b, 16, [0, *np.cumsum(np.sort(rng.random(15)))]) for b in range(2000)]
    limit = 0.4 * costs.total(costs.full)
    start = process_time()
    found = allocate(paths, costs, limit)
    assert process_time() - start < 5
    assert costs.total(found.kept) <= limit
    assert found.way[-1][0] == pytest.approx(costs.total(found.kept))
