"""Rounding towards the output: never worse than to nearest, on the grid, and exact where the answer is known."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.numerics.rounding import nearest, output_error, round_weights

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**31))


def problem(groups, outputs, inputs, seed, rows=None, spread=30.0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, rows or inputs + 5, inputs)) @ rng.standard_normal((groups, inputs, inputs)) + 0.5
    return rng.standard_normal((groups, outputs, inputs)) * spread, x.swapaxes(1, 2) @ x


@given(SIZES, st.sampled_from([3, 40, 127]))
def test_no_row_is_worse_than_rounded_to_nearest_and_all_stay_on_the_grid(sizes, largest):
    weight, gram = problem(*sizes)
    steps = round_weights(weight, gram, largest)
    assert steps.shape == weight.shape
    assert (steps == np.rint(steps)).all()
    assert np.abs(steps).max() <= largest
    ours, plain = (output_error(weight - s, gram) for s in (steps, nearest(weight, largest)))
    assert (ours <= plain * (1 + 1e-9)).all()


@given(SIZES, st.floats(0.01, 100))
def test_inputs_that_say_nothing_of_each_other_leave_rounding_to_nearest(sizes, power):
    groups, _, inputs, _ = sizes
    weight, _ = problem(*sizes)
    gram = np.broadcast_to(power * np.eye(inputs), (groups, inputs, inputs))
    assert (round_weights(weight, gram) == nearest(weight, 127)).all()


@given(SIZES)
def test_the_order_of_the_inputs_does_not_matter(sizes):
    weight, gram = problem(*sizes)
    order = np.random.default_rng(sizes[3]).permutation(weight.shape[-1])
    turned = round_weights(weight[..., order], gram[..., order, :][..., order])
    ours, theirs = (
        output_error(weight - round_weights(weight, gram), gram),
        output_error(weight[..., order] - turned, gram[..., order, :][..., order]),
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_two_inputs_that_are_the_same_share_the_rounding():
    gram = np.ones((1, 2, 2)) + 1e-6 * np.eye(2)
    assert round_weights(np.array([[[0.4, 0.4]]]), gram).sum() == 1


def test_the_best_of_all_is_found_in_most_small_problems():
    found = 0
    for seed in range(40):
        weight, gram = problem(1, 1, 4, seed, spread=2.0)
        choices = [
            nearest(weight, 127) + np.array(step).reshape(1, 1, 4) for step in itertools.product(range(-2, 3), repeat=4)
        ]
        best = min(float(output_error(weight - c, gram).item()) for c in choices)
        found += output_error(weight - round_weights(weight, gram), gram).item() <= best * (1 + 1e-9)
    assert found >= 20


def test_correlated_inputs_gain_decibels():
    weight, gram = problem(1, 32, 200, 0, rows=400)
    ours, plain = (output_error(weight - s, gram).sum() for s in (round_weights(weight, gram), nearest(weight, 127)))
    assert 10 * np.log10(plain / ours) > 3


@pytest.mark.parametrize("gram", [np.zeros((1, 3, 3)), np.diag([1.0, 0.0, 0.0])[None], np.full((1, 3, 3), 2.0)])
def test_moments_without_a_root_are_no_obstacle(gram):
    weight = np.array([[[0.3, 1.6, -2.4]]])
    steps = round_weights(weight, gram)
    assert output_error(weight - steps, gram).sum() <= output_error(weight - nearest(weight, 127), gram).sum()
