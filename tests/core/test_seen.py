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
    assert found.counts == (400, 100)
    weight = found.wanted(found.gram)
    assert np.allclose(weight, right)
    assert np.allclose(found.with_bias(weight)[1], shift)
    assert found.error(right, shift) < 1e-12
    assert found.error(found.weight, found.bias) > 1e-3
    assert (np.linalg.eigvalsh(found.damped(0.1)) > np.linalg.eigvalsh(found.gram)).all()


def test_a_layer_without_bias_gets_none():
    found, right, _ = seen(has_bias=False)
    assert not found.with_bias(right + 1)[1].any()
