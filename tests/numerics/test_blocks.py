"""Grids of few bits: bounds, what a search and half-quadratic splitting gain, and second-order rounding."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.numerics.blocks import (
    Blocks,
    Coded,
    Format,
    Grid,
    full_range,
    half_quadratic,
    nearest,
    searched,
    squared_error,
)
from onnxopt.numerics.rounding import output_error
from onnxopt.numerics.second_order import fit_scales, round_on

FORMS = [Format(bits, symmetric) for bits, symmetric in itertools.product((4, 8), (True, False))]
RNG = np.random.default_rng(0)


def outliers(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(1).standard_t(4, (rows, columns))


def moments(columns: int) -> np.ndarray:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((300, columns)) @ rng.standard_normal((columns, columns)) * rng.exponential(1, columns)
    return x.T @ x / len(x)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("columns", "block", "kernel"), [(64, 0, 1), (64, 16, 1), (40, 16, 1), (36, 2, 9), (45, 2, 9)])
def test_the_full_range_holds_every_weight_to_half_a_step(form, columns, block, kernel):
    weight = RNG.standard_normal((5, columns)) * 10.0 ** RNG.integers(-4, 4, (5, 1)) + RNG.standard_normal((5, 1))
    blocks = Blocks.along(columns // kernel, block, kernel)
    coded = nearest(weight, full_range(weight, blocks, form), blocks, form)
    # Half a step for the weight, and of asymmetric ones half for the rounded zero point.
    room = blocks.spread(coded.grid.scale) * (0.501 if form.symmetric else 1.001)
    assert (np.abs(weight - coded.values()) <= room).all()
    assert form.lowest <= coded.steps.min() <= coded.steps.max() <= form.highest
    assert form.symmetric == (not coded.grid.zero.any())
    assert coded.grid.scale.shape == (5, blocks.count)


def test_blocks_of_a_kernel_and_a_last_block_that_is_not_full():
    assert Blocks.along(5, 2).of.tolist() == [0, 0, 1, 1, 2]
    assert Blocks.along(3, 2, 2).of.tolist() == [0, 1, 0, 1, 2, 3]
    values = np.arange(6.0)[None]
    assert Blocks.along(3, 2, 2).fold(values).tolist() == [[2, 4, 4, 5]]
    assert Blocks.along(6, 3).fold(values, np.maximum).tolist() == [[2, 5]]
    assert Blocks.along(6, 4).spread(np.array([[7, 8]])).tolist() == [[7, 7, 7, 7, 8, 8]]


@pytest.mark.parametrize("form", FORMS)
def test_zeros_and_tiny_weights_stay_finite(form):
    weight = np.zeros((2, 8))
    weight[1] = 1e-30
    blocks = Blocks.along(8, 4)
    for coded in (
        nearest(weight, full_range(weight, blocks, form), blocks, form),
        half_quadratic(weight, blocks, form),
    ):
        assert np.isfinite(coded.values()).all()
        assert (np.abs(coded.values()) < 1e-16).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(FORMS), st.sampled_from([0, 8, 12]))
def test_no_block_is_worse_than_rounded_to_nearest(seed, form, block):
    weight = np.random.default_rng(seed).standard_t(3, (4, 24)).astype(np.float32)
    blocks = Blocks.along(24, block)
    plain = squared_error(weight, nearest(weight, full_range(weight, blocks, form), blocks, form))
    assert (squared_error(weight, half_quadratic(weight, blocks, form)) <= plain * (1 + 1e-5)).all()
    power = np.ones(24)
    grid = searched(weight, blocks, form, power)
    assert (squared_error(weight, nearest(weight, grid, blocks, form)) <= plain * (1 + 1e-5)).all()


@pytest.mark.parametrize(("block", "gain"), [(0, 0.5), (32, 0.2)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_half_quadratic_splitting_gains(block, gain, symmetric):
    weight, form = outliers(64, 256), Format(4, symmetric)
    blocks = Blocks.along(256, block)
    plain = squared_error(weight, nearest(weight, full_range(weight, blocks, form), blocks, form)).sum()
    assert 10 * np.log10(plain / squared_error(weight, half_quadratic(weight, blocks, form)).sum()) > gain


@pytest.mark.parametrize(("block", "kernel"), [(0, 1), (8, 1), (7, 1), (5, 9), (8, 9)])
def test_blocks_become_columns_and_rows_again(block, kernel):
    blocks, values = Blocks.along(24, block, kernel), np.arange(3.0 * 24 * kernel, dtype=np.float32).reshape(3, -1)
    cells = blocks.cells(values)
    assert (blocks.rows(cells) == values).all()
    assert (cells.sum(axis=0).reshape(3, -1) == blocks.fold(values)).all()
    assert blocks.counts.sum() == 24 * kernel


@pytest.mark.parametrize(("symmetric", "gain"), [(True, 0.45), (False, 0.27)])
def test_half_quadratic_splitting_gains_on_more_than_fits_the_cache(symmetric, gain):
    weight, form = np.random.default_rng(4).standard_normal((90, 2048), np.float32), Format(4, symmetric)
    blocks = Blocks.along(2048, 32)
    plain = squared_error(weight, nearest(weight, full_range(weight, blocks, form), blocks, form)).sum()
    found = half_quadratic(weight, blocks, form)
    assert 10 * np.log10(plain / squared_error(weight, found).sum()) > gain
    assert (found.steps == nearest(weight, found.grid, blocks, form).steps).mean() > 0.9999


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", [0, 16])
def test_second_order_rounding_gains_and_no_row_loses(form, block):
    weight, gram = outliers(24, 80), moments(80)
    blocks = Blocks.along(80, block)
    plain = nearest(weight, full_range(weight, blocks, form), blocks, form)
    found = round_on(weight, gram, plain, form)
    fitted = fit_scales(weight, gram, found)
    errors = [output_error(weight - c.values(), gram) for c in (plain, found, fitted)]
    assert (errors[1] <= errors[0] * (1 + 1e-9)).all()
    assert (errors[2] <= errors[1] * (1 + 1e-9)).all()
    assert 10 * np.log10(errors[0].sum() / errors[1].sum()) > (1.0 if form.bits == 8 else 0.2)
    assert form.lowest <= found.steps.min() <= found.steps.max() <= form.highest


def test_second_order_rounding_is_near_the_best_of_all():
    """Four weights on a grid of sixteen steps: every one of the 6^4 neighbours can be tried."""
    rng, form, blocks = np.random.default_rng(5), Format(4, True), Blocks.along(4, 2)
    ratio = []
    for _ in range(20):
        weight, x = rng.standard_normal((1, 4)), rng.standard_normal((9, 4)) @ rng.standard_normal((4, 4))
        gram, grid = x.T @ x, full_range(weight, blocks, form)
        near = nearest(weight, grid, blocks, form)
        found = output_error(weight - round_on(weight, gram, near, form).values(), gram)[0]
        moves = np.array(list(itertools.product(range(-3, 3), repeat=4)))
        steps = np.clip(near.steps + moves, form.lowest, form.highest)
        rows = Grid(*(np.repeat(p, len(steps), axis=0) for p in grid))
        best = output_error(weight - Coded(steps, rows, blocks).values(), gram).min()
        ratio.append(found / best)
    assert np.median(ratio) < 1.2
    assert min(ratio) >= 0.98
