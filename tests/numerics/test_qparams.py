"""Integers equal to ONNX Runtime's, bit for bit; zero exact; never a scale that cannot be used."""

from functools import cache

import hypothesis.extra.numpy as hnp
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.numerics.qparams import (
    BIAS_LIMIT,
    INT8,
    INT32,
    UINT8,
    QParams,
    QuantType,
    bias_quantize,
    dequantize,
    qparams_asymmetric,
    quantize,
    smallest_weight_scale,
    weight_qparams,
)

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
some_types = st.sampled_from(
    [UINT8, INT8, QuantType(16, signed=False), QuantType(16, signed=True), QuantType(4, signed=True)]
)


@cache
def runtime(qtype: QuantType, axis: int) -> ort.InferenceSession:
    text = f"""<ir_version: 10, opset_import: ["": 21]>
    g (float[N,M] x, float[K] s, {qtype}[K] z) => ({qtype}[N,M] q, float[N,M] y) {{
        q = QuantizeLinear <axis = {axis}> (x, s, z)
        y = DequantizeLinear <axis = {axis}> (q, s, z)
    }}"""
    return ort.InferenceSession(onnx.parser.parse_model(text).SerializeToString(), providers=["CPUExecutionProvider"])


@given(
    x=hnp.arrays(
        np.float32, (4, 33), elements=finite | st.floats(-300, 300, width=32) | st.sampled_from([np.inf, -np.inf])
    ),
    scale=hnp.arrays(np.float32, 4, elements=st.floats(2**-40, 2**20, width=32) | st.sampled_from([0.5, 1.0, 0.25])),
    qtype=st.sampled_from([UINT8, INT8, QuantType(16, signed=False), QuantType(16, signed=True)]),
    data=st.data(),
)
@settings(max_examples=300, deadline=None)
def test_equal_to_onnx_runtime(x: np.ndarray, scale: np.ndarray, qtype: QuantType, data: st.DataObject) -> None:
    points = st.integers(qtype.minimum, qtype.maximum)
    params = QParams(scale, data.draw(hnp.arrays(qtype.dtype, 4, elements=points)))
    q, y = runtime(qtype, 0).run(None, {"x": x, "s": params.scale, "z": params.zero_point})
    mine = quantize(x, params, qtype, axis=0)
    assert mine.dtype == q.dtype
    np.testing.assert_array_equal(mine, q)
    np.testing.assert_array_equal(dequantize(mine, params, axis=0), y)


def test_halves_round_to_even_as_in_onnx_runtime() -> None:
    x = np.arange(-300, 300, dtype=np.float32)[None] + np.float32(0.5)
    for zero in (0, 1, 128):
        params = QParams(np.ones(1, np.float32), np.full(1, zero, np.uint8))
        (q, _) = runtime(UINT8, 0).run(None, {"x": x, "s": params.scale, "z": params.zero_point})
        np.testing.assert_array_equal(quantize(x, params, UINT8, axis=0), q)
    assert quantize(np.float32(2.5), QParams(np.float32(1), np.uint8(0))) == 2


wide = st.floats(-(2.0**126), 2.0**126, width=32)  # beyond, a grid's last point may round to infinity


@given(lo=wide, hi=wide, qtype=some_types, where=st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(max_examples=500, deadline=None)
def test_inside_the_range_the_error_is_half_a_step_and_zero_is_exact(
    lo: float, hi: float, qtype: QuantType, where: list[float]
) -> None:
    lo, hi = min(lo, hi, 0.0), max(lo, hi, 0.0)
    params = qparams_asymmetric(lo, hi, qtype)
    assert params.scale.dtype == np.float32
    assert params.zero_point.dtype == qtype.dtype
    assert np.finfo(np.float32).tiny < params.scale < np.inf
    assert dequantize(quantize(np.float32(0), params, qtype), params) == 0
    x = np.array([lo * (1 - a) + hi * a for a in where], np.float32)
    with np.errstate(over="ignore"):
        error = np.abs(dequantize(quantize(x, params, qtype), params).astype(np.float64) - x)
    slack = np.abs(x).astype(np.float64) * 2.0**-22  # float32's own rounding
    assert (error <= params.scale.astype(np.float64) / 2 + slack).all()


def test_all_levels_are_used_and_ranges_are_widened_to_zero() -> None:
    params = qparams_asymmetric([0.0, -1.0, 5.0, -9.0], [2.55, 1.55, 25.5, -1.0])
    np.testing.assert_allclose(params.scale, [0.01, 0.01, 0.1, 9 / 255], rtol=1e-6)
    assert params.zero_point.tolist() == [0, 100, 0, 255]


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, -1e-40])
def test_a_range_of_almost_nothing_has_a_scale_to_divide_by(value: float) -> None:
    params = qparams_asymmetric(min(value, 0), max(value, 0))
    assert params.scale >= 2.0**-60
    assert dequantize(quantize(np.zeros(2, np.float32), params), params).tolist() == [0, 0]


def test_a_range_as_wide_as_float32_does_not_overflow() -> None:
    top = np.finfo(np.float32).max
    params = qparams_asymmetric(-top, top)
    assert np.isfinite(params.scale)
    assert quantize(np.array([-top, 0, top]), params).tolist() == [0, 128, 255]


@pytest.mark.parametrize(("lo", "hi", "message"), [(np.nan, 1, "finite"), (0, np.inf, "finite"), (2, 1, "lo <= hi")])
def test_impossible_ranges_are_refused(lo: float, hi: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        qparams_asymmetric(lo, hi)


@given(
    w=hnp.arrays(np.float32, (3, 4, 2), elements=st.floats(-(2**30), 2**30, width=32)),
    axis=st.sampled_from([0, 1, -1, None]),
)
@settings(deadline=None)
def test_weights_use_the_narrow_range_and_lose_half_a_step(w: np.ndarray, axis: int | None) -> None:
    params = weight_qparams(w, axis)
    assert params.scale.shape == (() if axis is None else (w.shape[axis],))
    assert not params.zero_point.any()
    q = quantize(w, params, INT8, axis)
    assert q.min() >= -127
    step = params.scale.astype(np.float64)
    step = step if axis is None else step.reshape([-1 if i == axis % 3 else 1 for i in range(3)])
    assert (np.abs(dequantize(q, params, axis).astype(np.float64) - w) <= step * (0.5 + 1e-4)).all()


def test_channels_of_zeros_and_empty_weights() -> None:
    params = weight_qparams(np.array([[0, 0], [1, -127]], np.float32), at_least=[0.25, 0.25])
    assert params.scale.tolist() == [0.25, 1.0]
    assert weight_qparams(np.zeros((2, 3))).scale.tolist() == [1, 1]
    assert weight_qparams(np.zeros((2, 0))).scale.tolist() == [1, 1]


def test_weights_must_be_finite() -> None:
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="finite"):
            weight_qparams(np.array([[1.0, bad]]))


def test_a_bias_is_exact_to_half_a_step_of_both_scales() -> None:
    bias, sx, sw = np.array([1.0, -2.0, 0.3]), np.float32(0.02), np.array([0.01, 0.02, 0.001], np.float32)
    q, scale = bias_quantize(bias, sx, sw)
    assert q.dtype == INT32.dtype
    assert scale.dtype == np.float32
    np.testing.assert_array_equal(scale, sx * sw)
    assert (np.abs(q * scale.astype(np.float64) - bias) <= scale / 2).all()


@given(
    bias=hnp.arrays(np.float64, 3, elements=st.floats(-1e6, 1e6)),
    sx=st.floats(1e-9, 1e3),
    size=st.floats(0, 1),
)
@settings(deadline=None)
def test_with_the_smallest_weight_scale_a_bias_never_overflows(bias: np.ndarray, sx: float, size: float) -> None:
    weight = np.full((3, 2), size * 1e-6)
    input_scale = np.float32(sx)
    params = weight_qparams(weight, at_least=smallest_weight_scale(bias, input_scale))
    q, scale = bias_quantize(bias, input_scale, params.scale)
    assert (np.abs(q.astype(np.int64)) <= BIAS_LIMIT * (1 + 1e-6)).all()
    assert (np.abs(q * scale.astype(np.float64) - bias) <= scale * (0.5 + 1e-9)).all()


def test_a_bias_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit into int32"):
        bias_quantize(np.array([1.0]), 1e-6, np.array([1e-6]))


def test_types_print_as_onnx_names_them() -> None:
    assert [str(t) for t in (UINT8, INT8, INT32)] == ["uint8", "int8", "int32"]
    assert (QuantType(4, signed=False).levels, QuantType(4, signed=False).dtype) == (16, np.dtype("uint8"))
