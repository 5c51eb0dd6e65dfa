"""Which weights may share levels, along which axes they are scaled, and what is told of them."""

import numpy as np
import pytest

from onnxopt.weights import sharing
from onnxopt.weights.sharing import Kind


def found(model):
    return {c.name: (c, nodes) for c, nodes in sharing.candidates(model).items()}


@pytest.mark.parametrize(
    ("nodes", "weights", "x", "scales"),
    [
        ("y = Conv(x, w)", "float[16,8,3,3] w", "float[1,8,9,9] x", (16, 1, 1, 1)),
        ("y = ConvTranspose(x, w)", "float[8,16,3,3] w", "float[1,8,9,9] x", (1, 16, 1, 1)),
        ("y = ConvTranspose<group=2>(x, w)", "float[8,16,3,3] w", "float[1,8,9,9] x", ()),
        ("y = Gemm<transB=1>(x, w)", "float[32,64] w", "float[1,64] x", (32, 1)),
        ("y = MatMul(x, w)", "float[64,32] w", "float[1,64] x", (1, 32)),
        ("y = MatMul(w, x)", "float[64,32] w", "float[32,1] x", (64, 1)),
        ("y = GRU<hidden_size=16>(x, w, r)", "float[1,48,24] w, float[1,48,16] r", "float[3,1,24] x", (1, 48, 1)),
        ("y = Gather(w, x)", "float[100,16] w", "int64[4] x", (100, 1)),
    ],
)
def test_scales_lie_along_the_outputs(build, nodes, weights, x, scales) -> None:
    model = build(nodes, weights, x)
    constant, readers = found(model)["w"]
    assert sharing.fault(model, constant, readers, Kind(16)) == ""
    coded = sharing.by_weights(constant, readers, Kind(16))
    assert (() if coded.scale is None else coded.scale.shape) == scales
    assert coded.codes.shape == tuple(constant.shape)
    told = sharing.told("it", constant.values, coded, "w", None)
    assert told.weight_db > 17
    assert told.bytes[0] == constant.nbytes > told.bytes[1] > told.bytes[2]
    one = sharing.by_weights(constant, readers, Kind(16, per_channel=False))
    assert one.scale is None
    assert len(np.unique(one.values)) <= 16


def test_readers_that_disagree_share_one_scale(build) -> None:
    model = build("a = MatMul(x, w) y = MatMul(w, a)", "float[32,32] w", "float[32,32] x")
    constant, readers = found(model)["w"]
    assert len(readers) == 2
    assert sharing.by_weights(constant, readers, Kind(4)).scale is None
    assert not sharing.is_solvable(model, constant, readers)


def test_vectors_and_integers_are_no_candidates(build) -> None:
    model = build(
        "a = Gather(t, x) b = Gather(v, x) y = Add(b, c)", "int64[90,8] t, float[90] v, float[4,4] c", "int64[4] x"
    )
    assert found(model) == {}
