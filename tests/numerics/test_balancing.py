"""Rounding with errors that cancel."""

import numpy as np
import pytest

from onnxopt.numerics.balancing import balanced
from onnxopt.numerics.blocks import Blocks, Format, full_range, nearest, squared_error


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("inputs", "block", "kernel"), [(64, 32, 1), (70, 32, 1), (40, 0, 1), (36, 32, 9), (4096, 0, 1)]
)
def test_errors_of_a_block_add_up_to_half_a_step(inputs, block, kernel, bits, symmetric):
    weight = np.random.default_rng(0).standard_normal((48, inputs * kernel)).astype(np.float32)
    blocks, form = Blocks.along(inputs, block, kernel), Format(bits, symmetric)
    found = balanced(weight, blocks, form)
    steps = blocks.fold(weight - found.values()) / found.grid.scale
    assert np.abs(steps).max() < 0.5 + 1e-2
    plain = nearest(weight, full_range(weight, blocks, form), blocks, form)
    assert np.abs(found.steps.astype(int) - plain.steps).max() == 1
    assert squared_error(weight, found).sum() < 1.2 * squared_error(weight, plain).sum()


def test_of_equal_weights_some_go_up():
    weight = np.full((2, 40), 0.3, np.float32)
    weight[:, 0] = 7  # one step is 1
    found = balanced(weight, Blocks.along(40, 0), Format(4, True))
    assert found.steps[:, 0].tolist() == [7, 7]
    assert found.steps[:, 1:].sum(axis=1).tolist() == [12, 12]
    assert set(found.steps[:, 1:].reshape(-1).tolist()) == {0, 1}


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_constant_weights_stay(value):
    weight = np.full((3, 33), value, np.float32)
    np.testing.assert_allclose(balanced(weight, Blocks.along(33, 32), Format(4, False)).values(), weight, rtol=1e-6)


def test_what_is_positive_gains():
    rng = np.random.default_rng(1)
    weight, x = rng.standard_normal((64, 256)), np.maximum(rng.standard_normal((500, 256)), 0)
    blocks, form = Blocks.along(256, 32), Format(4, False)
    plain = nearest(weight, full_range(weight, blocks, form), blocks, form)
    error = [np.square(x @ (weight - c.values()).T).sum() for c in (plain, balanced(weight, blocks, form))]
    assert 10 * np.log10(error[0] / error[1]) > 1
