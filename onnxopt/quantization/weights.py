"""A layer's weights and bias on their way to integers.

Rounded to the nearest step here; whatever finds better steps, a smaller error or safer ones works on the same values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnxopt.graph import layer as layers
from onnxopt.graph.ir import Node
from onnxopt.graph.layer import Floats
from onnxopt.graph.signature import Array
from onnxopt.numerics.qparams import (
    BIAS_LIMIT,
    INT8,
    QParams,
    bias_quantize,
    dequantize,
    quantize,
    smallest_weight_scale,
    weight_qparams,
)
from onnxopt.quantization.bias_correction import Means
from onnxopt.quantization.eligible import column_bias, output_axis
from onnxopt.quantization.saturation import pairs, safe_scale


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """What a layer's node stores: ``steps`` int8 in the weight's own shape, ``params`` with scales () or (channels,)
    along ``axis``, and ``bias`` (channels,) as real numbers, not yet rounded. ``input_scale`` is that of its input;
    ``reduced`` counts the scales that are larger than the weights need lest sums of products overflow."""

    steps: Array
    params: QParams
    axis: int
    bias: Floats
    input_scale: Array
    reduced: int = 0

    @property
    def values(self) -> Array:
        """The weights that the steps stand for, float32."""
        return dequantize(self.steps, self.params, self.axis)

    def int32_bias(self) -> tuple[Array, QParams]:
        """The bias in the layer's accumulator: int32 (channels,) on the scale of input times weight."""
        weight_scale = self.params.scale
        limit = BIAS_LIMIT * self.input_scale.astype(np.float64) * weight_scale
        steps, scale = bias_quantize(np.clip(self.bias, -limit, limit), self.input_scale, weight_scale)
        scale = scale if weight_scale.ndim else scale[0]
        return steps, QParams(scale, np.zeros(scale.shape, steps.dtype))


def nearest(
    node: Node, input_params: QParams, *, per_channel: bool = True, safe: bool = False, added: int = 0
) -> LayerWeights:
    """The weights of Conv, Gemm or MatMul rounded to nearest, with the scale of the largest of them.

    ``safe``: no pair of products overflows 16 bits; which ones are paired hangs on input channels ``added`` later.
    """
    weight, bias, axis = node.inputs[1].values, column_bias(node), output_axis(node)
    assert bias is not None
    least = smallest_weight_scale(bias, input_params.scale)
    params = (
        weight_qparams(weight, axis, at_least=least)
        if per_channel
        else weight_qparams(weight, None, at_least=least.max())
    )
    largest = params.scale
    if safe:
        params = params._replace(scale=safe_scale(pairs(node, weight, added), largest))
    reduced = int(np.count_nonzero(params.scale != largest))
    return LayerWeights(quantize(weight, params, INT8, axis), params, axis, bias, input_params.scale, reduced)


def correct(node: Node, weights: LayerWeights, means: Means) -> LayerWeights:
    """Let the bias make good for what rounding the weights and the input takes from the outputs on average."""
    layout = layers.layout(node)
    lost = layout.respond(node.inputs[1].values, means.exact) - layout.respond(weights.values, means.rounded)
    return replace(weights, bias=weights.bias + lost)
