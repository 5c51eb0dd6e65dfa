"""The guard against overflowing pairs, checked with sums of pairs written out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.graph.ir import Constant, Node, Variable
from onnxopt.quantization.saturation import LIMIT, can_saturate, paired, pairs, relieve, safe_scale, unpaired


def layer(op: str, shape: tuple[int, ...], **attrs: object) -> Node:
    weight = Constant("w", np.zeros(shape, np.float32))
    return Node(op, "layer", [Variable("x"), weight], [Variable("y")], attrs)


def overflows(first: int, second: int) -> bool:
    """The instruction itself, on every extreme of two activations."""
    sums = [a * first + b * second for a, b in itertools.product((0, 255), repeat=2)]
    return min(sums) < -(2**15) or max(sums) > 2**15 - 1


def test_the_limit_is_that_of_16_bits() -> None:
    every = range(-128, 128)
    steps = np.array(list(itertools.product(every, repeat=2)), np.int8).reshape(-1, 1, 2)
    expected = [overflows(int(a), int(b)) for a, b in steps[:, 0]]
    assert (can_saturate(steps) == expected).all()
    assert 0 < sum(expected) < len(expected)


@pytest.mark.parametrize("inputs", [1, 2, 5, 8])
def test_a_product_pairs_its_rows(inputs: int) -> None:
    weight = np.arange(1, inputs * 3 + 1, dtype=np.int8).reshape(inputs, 3)
    expected = [
        [[weight[i, c], weight[i + 1, c] if i + 1 < inputs else 0] for i in range(0, inputs, 2)] for c in range(3)
    ]
    assert (pairs(layer("MatMul", weight.shape), weight) == expected).all()
    assert (pairs(layer("Gemm", weight.shape), weight) == expected).all()
    assert (pairs(layer("Gemm", weight.T.shape, transB=1), weight.T) == expected).all()


@pytest.mark.parametrize(("shape", "group"), [((4, 3, 2, 3), 1), ((4, 4, 3), 1), ((4, 2, 1, 1), 2), ((6, 1, 3, 3), 2)])
def test_a_convolution_pairs_channels_then_places(shape: tuple[int, ...], group: int) -> None:
    weight = np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8)
    found = pairs(layer("Conv", shape, group=group), weight)
    for channel in range(shape[0]):
        summed = [weight[(channel, c, *at)] for at in np.ndindex(*shape[2:]) for c in range(shape[1])]
        summed += [0] * (len(summed) % 2)
        assert found[channel].reshape(-1).tolist() == summed


def test_a_depthwise_convolution_has_no_pairs() -> None:
    weight = np.full((4, 1, 3, 3), 127, np.int8)
    found = pairs(layer("Conv", weight.shape, group=4), weight)
    assert found.shape == (4, 9, 1)
    assert not can_saturate(found).any()
    assert (relieve(found) == found).all()


@pytest.mark.parametrize(
    ("op", "shape", "attrs"),
    [
        ("MatMul", (5, 3), {}),
        ("Gemm", (3, 5), {"transB": 1}),
        ("Conv", (4, 3, 3, 3), {}),
        ("Conv", (4, 2, 3), {"group": 2}),
        ("Conv", (4, 1, 3, 3), {"group": 4}),
    ],
)
def test_pairs_are_undone(op: str, shape: tuple[int, ...], attrs: dict[str, object]) -> None:
    weight = np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8)
    node = layer(op, shape, **attrs)
    assert (unpaired(node, pairs(node, weight), shape) == weight).all()


def test_only_channels_that_overflow_get_another_scale() -> None:
    rows = np.array([[100, 100, -27, 3], [127, -127, 127, 0], [64, 64, -64, -64], [-100, -29, 0, 0]], np.float32)
    scale = np.ones(4, np.float32)
    safe = safe_scale(paired(rows), scale)
    assert safe.dtype == np.float32
    assert safe[[1, 2]].tolist() == [1, 1]
    assert (safe[[0, 3]] >= np.array([200, 129]) / 128).all()
    assert (safe[[0, 3]] <= np.array([200, 129]) / 128 * 1.1201).all()
    assert safe_scale(paired(rows[1:3]), scale[1:3]).tobytes() == scale[1:3].tobytes()


def test_one_scale_for_all_channels_serves_the_heaviest() -> None:
    rows = np.array([[100, 100], [120, 127]], np.float32)
    safe = safe_scale(paired(rows), np.array(1, np.float32))
    assert safe.shape == ()
    assert 247 / 128 <= safe <= 247 / 128 * 1.1201


def test_the_scale_that_rounds_best_is_taken() -> None:
    # All of these are whole numbers of steps of 2, and of nothing smaller that would do.
    rows = np.array([[120, 126, 30, -12, 8, 2, -44, 60]], np.float32)
    assert safe_scale(paired(rows), np.array([126 / 127], np.float32)) == pytest.approx(2, rel=0.006)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([2, 3, 9, 64]),
    st.sampled_from([1e-15, 1.0, 3e5]),
    st.sampled_from(["normal", "uniform", "ties"]),
)
def test_nothing_overflows_at_the_safe_scale(seed: int, inputs: int, size: float, kind: str) -> None:
    rng = np.random.default_rng(seed)
    shape = (40, inputs)
    rows = {
        "normal": rng.normal(size=shape),
        "uniform": rng.uniform(-1, 1, shape),
        "ties": rng.integers(-254, 255, shape) / 2,
    }[kind]
    rows = (rows * size).astype(np.float32)
    largest = np.abs(rows).max(axis=1)
    scale = np.where(largest == 0, 1, largest / np.float32(127)).astype(np.float32)
    safe = safe_scale(paired(rows), scale)
    steps = np.rint(rows / safe[:, None])
    assert not can_saturate(paired(steps)).any()
    assert (np.abs(steps) <= 127).all()
    assert (safe <= np.maximum(scale, largest / 64) * 1.1201).all()
    changed = safe != scale
    assert (changed == can_saturate(paired(np.rint(rows / scale[:, None])))).all()
    # Not far from the least: finer by what was tried, and something overflows or the scale is the old one.
    finer = np.maximum(scale, safe / np.float32(1.016 * 1.12))
    assert can_saturate(paired(np.rint(rows / finer[:, None])))[changed].all()


def test_relieve_takes_no_more_than_it_must() -> None:
    every = np.arange(-128, 128)
    steps = np.array(list(itertools.product(every, repeat=2)), np.int8).reshape(1, -1, 2)
    relieved = relieve(steps)
    assert relieved.dtype == np.int8
    assert not can_saturate(relieved).any()
    moved = (relieved != steps).any(axis=2)
    sums = np.abs(relieved.astype(int).sum(axis=2))
    assert (sums[moved] == LIMIT).all()
    assert (np.sign(relieved[moved].astype(int)) * np.sign(steps[moved].astype(int)) >= 0).all()
    assert moved[0].tolist() == [overflows(int(a), int(b)) for a, b in steps[0]]


def test_pairs_move_with_channels_that_are_added() -> None:
    weight = np.arange(1, 13, dtype=np.int8).reshape(2, 3, 2)
    node = layer("Conv", weight.shape)
    assert pairs(node, weight)[0].tolist() == [[1, 3], [5, 2], [4, 6]]
    assert pairs(node, weight, added=1)[0].tolist() == [[1, 3], [5, 0], [2, 4], [6, 0]]
    assert (unpaired(node, pairs(node, weight, added=1), weight.shape, added=1) == weight).all()
