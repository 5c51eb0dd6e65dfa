"""What counts as the same result."""

import numpy as np
import pytest

from onnxopt.numerics.tolerance import allowed, deviation


@pytest.mark.parametrize(
    ("reference", "candidate", "expected"),
    [
        (np.array([1.0, -4.0]), np.array([1.0, -4.0]), 0.0),
        (np.array([1.0, -4.0]), np.array([1.2, -4.0]), 0.05),
        (np.array([3e-8, 0.0]), np.array([6e-8, 0.0]), 3e-6),  # nearly nothing of what a probability may be
        (np.array([np.inf, np.nan, 2.0]), np.array([np.inf, np.nan, 1.0]), 0.5),
        (np.array([np.inf, 1.0]), np.array([-np.inf, 1.0]), np.inf),
        (np.array([1.0, 1.0]), np.array([np.nan, 1.0]), np.inf),
        (np.array([np.nan]), np.array([np.nan]), 0.0),
        (np.zeros((0, 3)), np.zeros((0, 3)), 0.0),
        (np.zeros(3), np.zeros((1, 3)), np.inf),
        (np.zeros(3), np.zeros(3, np.float32), np.inf),
        (np.array([1, 2]), np.array([1, 2]), 0.0),
        (np.array([1, 2]), np.array([1, 3]), np.inf),
        (np.array(["a"], object), np.array(["a"], object), 0.0),
    ],
)
def test_deviation(reference, candidate, expected):
    assert deviation(reference, candidate) == pytest.approx(expected)


def test_only_floats_may_deviate():
    assert allowed(np.dtype(np.float64)) < allowed(np.dtype(np.float32)) < allowed(np.dtype(np.float16))
    assert allowed(np.dtype(np.int64)) == 0
