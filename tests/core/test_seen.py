"""What a layer has seen: the weights that come nearest, the bias that goes with them, and the error on other rows."""

import numpy as np
import pytest

from onnxopt.core.seen import Seen


def seen(has_bias: bool, groups: int = 2, outputs: int = 3, inputs: int = 4) -> tuple[Seen, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    right, shift = rng.standard_normal((groups, outputs, inputs)), rng.standard_normal((groups, outputs)) * has_bias
    x = rng.standard_normal((500, groups * inputs)) + 1
    t = np.einsum("ngi,goi->ngo", x.reshape(500, groups, inputs), right) + shift
    held = np.arange(500) % 5 == 4
    rows = [(x[part], t[part].reshape(len(t[part]), -1), held[part]) for part in (slice(0, 200), slice(200, 500))]
    start = right + 0.1 * rng.standard_normal(right.shape)
    return Seen(start, np.zeros((groups, outputs)), has_bias, rows), right, shift


@pytest.mark.parametrize("has_bias", [True, False])
def test_the_layer_that_made_the_targets_is_found(has_bias):
    found, right, shift = seen(has_bias)
    assert found.tells
    weight = found.wanted(found.gram)
    assert np.allclose(weight, right)
    assert np.allclose(found.with_bias(weight)[1], shift)
    assert found.error(right, shift) < 1e-12
    assert found.error(found.weight, found.bias) > 1e-3
    assert (np.linalg.eigvalsh(found.damped(0.1)) > np.linalg.eigvalsh(found.gram)).all()


def test_a_layer_without_bias_gets_none():
    found, right, _ = seen(has_bias=False)
    assert not found.with_bias(right + 1)[1].any()


@pytest.mark.parametrize("has_bias", [True, False])
def test_errors_are_measured_about_the_mean_where_a_bias_makes_good_for_that(has_bias):
    rng = np.random.default_rng(1)
    x, held = rng.standard_normal((500, 4)) + 1, np.arange(500) % 5 == 4
    right, wrong = rng.standard_normal((2, 1, 3, 4))
    t = x @ right[0].T + 10
    found = Seen(right, np.full((1, 3), 10.0), has_bias, [(x, t, held)])
    lost = np.square(x[held] @ (wrong - right)[0].T).sum()
    about = t[held].mean(axis=0) if has_bias else 0.0
    assert found.error(wrong, found.bias) == pytest.approx(lost / np.square(t[held] - about).sum())


def test_nothing_is_solved_that_nothing_was_held_back_to_judge():
    rng = np.random.default_rng(2)
    x, right = rng.standard_normal((3, 4)), rng.standard_normal((1, 2, 4))
    t = x @ right[0].T + 1
    found = Seen(right, np.zeros((1, 2)), True, [(x, t, np.zeros(3, np.bool_))])
    assert not found.tells
    assert not found.with_bias(right)[1].any()
    assert found.error(right, found.bias) == pytest.approx(6 / np.square(t).sum())


def test_inputs_that_do_not_vary_tell_nothing_beside_a_bias():
    x, held = np.ones((10, 4)), np.arange(10) % 5 == 4
    rows = [(x, np.full((10, 2), 3.0), held)]
    weight, bias = np.ones((1, 2, 4)), np.zeros((1, 2))
    assert not Seen(weight, bias, True, rows).tells
    assert Seen(weight, bias, False, rows).tells
    assert Seen(weight, bias, True, rows).error(weight, bias) == pytest.approx(1 / 9)
