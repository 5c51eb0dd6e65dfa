"""What ONNX Runtime's CPU provider computes in 8-bit integers, operator by operator: a table, no behaviour.

Times are picoseconds per element on one thread of an x86 server with AVX512-VNNI (onnxruntime 1.31); only their
ratios matter, and only where there is a choice: layers are always wanted in integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any


class Kind(Enum):
    """LAYER has constant weights, and makes quantizing worth while. LIGHT computes without weights, with a scale of
    its own for each input and the output. MOVE hands numbers on as they are: its output has its input's scale."""

    LAYER = "layer"
    LIGHT = "light"
    MOVE = "move"


@dataclass(frozen=True)
class Kernel:
    """What the integer kernel of one operator needs, and what it costs.

    ``activations`` are the inputs that it takes as integers (None: all). ``float_output``: it can give float numbers
    as well, which is more accurate and saves a step. ``attributes`` lists the values that it allows; None stands for
    an attribute left out. ``since`` is the first opset whose definition allows the integer form. ``float_ps`` and
    ``integer_ps`` are per element: of the largest tensor at the node or, when ``windowed``, per element of the output
    and place in the kernel's window.
    """

    kind: Kind
    activations: tuple[int, ...] | None = (0,)
    float_output: bool = False
    float_ps: int = 0
    integer_ps: int = 0
    windowed: bool = False
    since: int = 10
    attributes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


_INSIDE = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")

KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "Conv": Kernel(Kind.LAYER),
        "Gemm": Kernel(Kind.LAYER, float_output=True, attributes={"transA": (None, 0)}),
        "MatMul": Kernel(Kind.LAYER, float_output=True),
        "Add": Kernel(Kind.LIGHT, None, float_ps=80, integer_ps=93),
        "Mul": Kernel(Kind.LIGHT, None, float_ps=80, integer_ps=180),
        "Concat": Kernel(Kind.LIGHT, None, float_ps=135, integer_ps=25),
        "Sigmoid": Kernel(Kind.LIGHT, float_ps=227, integer_ps=236),
        "LeakyRelu": Kernel(Kind.LIGHT, float_ps=180, integer_ps=236),
        "GlobalAveragePool": Kernel(Kind.LIGHT, float_ps=124, integer_ps=28),
        # Its own integer kernel is twenty times slower than a convolution with equal weights.
        "AveragePool": Kernel(
            Kind.LIGHT, float_ps=80, integer_ps=60, windowed=True, attributes={"ceil_mode": (None, 0)}
        ),
        "MaxPool": Kernel(Kind.MOVE, float_ps=80, integer_ps=35, windowed=True, since=12),
        # Interpolation would have to round; numbers from outside the picture would need a scale of their own.
        "Resize": Kernel(
            Kind.MOVE,
            float_ps=335,
            integer_ps=578,
            since=11,
            attributes={
                "mode": (None, "nearest"),
                "coordinate_transformation_mode": (None, *_INSIDE),
            },
        ),
        "Pad": Kernel(Kind.MOVE, float_ps=92, integer_ps=14, since=13, attributes={"mode": (None, "constant")}),
        "Transpose": Kernel(Kind.MOVE, float_ps=100, integer_ps=32),
        "Slice": Kernel(Kind.MOVE, float_ps=200, integer_ps=186),
        "Split": Kernel(Kind.MOVE, float_ps=100, integer_ps=30),
        "Gather": Kernel(Kind.MOVE, float_ps=100, integer_ps=30),
        "Expand": Kernel(Kind.MOVE, float_ps=100, integer_ps=30),
        "Tile": Kernel(Kind.MOVE, float_ps=100, integer_ps=30),
        "DepthToSpace": Kernel(Kind.MOVE, float_ps=1090, integer_ps=748),
        "SpaceToDepth": Kernel(Kind.MOVE, float_ps=1090, integer_ps=748),
        "Reshape": Kernel(Kind.MOVE),
        "Flatten": Kernel(Kind.MOVE),
        "Squeeze": Kernel(Kind.MOVE),
        "Unsqueeze": Kernel(Kind.MOVE),
        "Identity": Kernel(Kind.MOVE),
    }
)

# Functions whose clamp the range of the quantizer behind them takes over, so that nothing is left to compute.
CLAMPS = ("Relu", "Clip")

# The runtime makes integer kernels of these whenever they lie between integers, to everyone's loss: the former is three
# to seven times slower than floats, and wrong with ceil_mode and count_include_pad, the latter twice as slow.
KEPT_APART = ("AveragePool", "Softmax")

# Operators that spend their time on products, with no integer kernel for static scales.
FLOAT_LAYERS: Mapping[str, str] = MappingProxyType(
    {
        "ConvTranspose": "ConvTranspose has no integer kernel",
        "LSTM": "LSTM has integer kernels for dynamic scales only",
        "GRU": "GRU has no integer kernel for static scales",
        "RNN": "RNN has no integer kernel",
        "Einsum": "Einsum has no integer kernel",
    }
)

# A model that holds one of these has been quantized already.
QUANTIZED = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
        "ConvInteger",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QLinearConv",
        "QLinearMatMul",
        "QGemm",
        "QAttention",
    }
)

# One quantization and one dequantization, per element, with the change of layout that mostly comes with them; and
# what every node costs, however small its tensors are.
QUANTIZE_PS = 85
DEQUANTIZE_PS = 110
NODE_PS = 500_000
