"""Resize and Pad with all axes named: the same results, or left as they are."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.graph import shapes
from onnxopt.quantization.plain_axes import name_all_axes
from onnxopt.runtime.session import Session


def rewritten(net):
    specs = shapes.specs(net)
    copy = net.clone()
    name_all_axes(copy, {"x": (1, 8, 16, 16)}, specs)
    copy.tidy()
    return copy


@pytest.mark.parametrize(
    ("node", "weights"),
    [
        ("y = Resize <axes = [2, 3]> (x, , scales)", "float[2] scales = {2, 3}"),
        ("y = Resize <axes = [-1, 2]> (x, , scales)", "float[2] scales = {0.5, 3}"),
        ("y = Resize <axes = [3, 2]> (x, , , sizes)", "int64[2] sizes = {7, 31}"),
        ('y = Resize <axes = [2], mode = "linear"> (x, , , sizes)', "int64[1] sizes = {11}"),
        ("y = Pad (x, pads, , axes)", "int64[4] pads = {1, 2, 3, 4}, int64[2] axes = {3, -2}"),
        ("y = Pad (x, pads, value, axes)", "int64[2] pads = {1, 2}, float value = {7}, int64[1] axes = {1}"),
    ],
)
def test_the_same_without_axes(build, node, weights):
    net = build(node, weights, opset=18)
    copy = rewritten(net)
    (found,) = copy.graph.nodes
    assert "axes" not in found.attrs
    assert len(found.inputs) < 4
    feed = {"x": np.random.default_rng(0).normal(size=(1, 8, 16, 16)).astype(np.float32)}
    np.testing.assert_array_equal(Session(copy).run(feed)["y"], Session(net).run(feed)["y"])


def test_every_size_is_met_exactly(build):
    feed = {"x": np.zeros((1, 1, 16, 3), np.float32)}
    for size in range(1, 60):
        weights = f"int64[1] sizes = {{{size}}}"
        net = build("y = Resize <axes = [3]> (x, , , sizes)", weights, "float[1,1,16,3] x", opset=18)
        copy = net.clone()
        name_all_axes(copy, {"x": (1, 1, 16, 3)}, shapes.specs(net))
        assert "axes" not in copy.graph.nodes[0].attrs
        assert Session(copy).run(feed)["y"].shape == (1, 1, 16, size)


@pytest.mark.parametrize(
    ("node", "weights", "x"),
    [
        ("y = Resize <axes = [2, 3]> (x, , , sizes)", "int64[2] sizes = {7, 31}", "float[1,8,H,16] x"),
        (
            'y = Resize <axes = [2, 3], keep_aspect_ratio_policy = "not_larger"> (x, , , sizes)',
            "int64[2] sizes = {7, 31}",
            "float[1,8,16,16] x",
        ),
        (
            "a = Cast <to = 7> (k) y = Pad (x, pads, , a)",
            "int64[2] pads = {1, 2}, int32[1] k = {1}",
            "float[1,8,16,16] x",
        ),
    ],
)
def test_what_is_not_known_stays(build, node, weights, x):
    net = build(node, weights, x, opset=18)
    copy = rewritten(net)
    assert "axes" in copy.graph.nodes[-1].attrs or len(copy.graph.nodes[-1].inputs) == 4
