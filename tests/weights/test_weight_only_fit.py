"""Rounding for what a layer reads: never worse than to nearest, several decibels better where inputs tell of each
other."""

import numpy as np
import pytest

from onnxopt.numerics.blocks import Blocks, Format
from onnxopt.weights.weight_only_fit import fit


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("groups", "block", "symmetric"), [(1, 16, True), (1, 0, False), (3, 16, False)])
def test_the_best_on_rows_that_were_held_back(groups, block, symmetric, has_bias):
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((groups, 8, 32)), np.zeros((groups, 8))
    mix = rng.standard_normal((32, 32)) * rng.exponential(1, 32)
    x = rng.standard_normal((1500, groups, 32)) @ mix + 1
    t = np.einsum("ngi,goi->ngo", x, weight)
    rows = [(x.reshape(1500, -1), t.reshape(1500, -1), np.arange(1500) % 5 == 4)]
    found = fit(weight, bias, has_bias, rows, Blocks.along(32, block), Format(4, symmetric))
    assert found.rounding == "second-order"
    assert 10 * np.log10(found.nearest / found.error) > 1.5
    assert found.weight().shape == weight.shape
    assert has_bias or not found.bias.any()


def test_without_rows_the_nearest_are_taken():
    weight = np.random.default_rng(0).standard_normal((1, 4, 8))
    found = fit(weight, np.zeros((1, 4)), True, [], Blocks.along(8, 0), Format(4, symmetric=True))
    assert (found.rounding, found.error, found.nearest) == ("nearest", 0, 0)
