"""The operators that ONNX Runtime's CPU provider executes in float16.

Around any other float16 node it puts Casts, and computes in float32. Which are which was asked of ONNX Runtime 1.31
itself, by its register of kernels and by loading models of one node and counting the Casts in what it makes of them: on
x86-64, and emulated as Cortex-A53, A72, A76, Neoverse N1, V1 and N2. Of what a processor has, float16 arithmetic
(``asimdhp``) alone makes a difference; x86 processors have the kernels of those ARM processors that lack it.

Each operator with the first operator set whose version of it has a kernel.
"""

from __future__ import annotations

from onnxopt.runtime.target import Target

# Mostly what moves numbers and does not compute with them.
EVERYWHERE = {
    "Attention": 23,
    "BitCast": 26,
    "Cast": 6,
    "Clip": 12,
    "Compress": 9,
    "Concat": 4,
    "ConstantOfShape": 9,
    "Dropout": 7,
    "Expand": 8,
    "Flatten": 1,
    "Gather": 1,
    "GatherElements": 11,
    "GatherND": 11,
    "Identity": 1,
    "IsInf": 20,
    "IsNaN": 9,
    "LayerNormalization": 17,
    "Max": 12,
    "Min": 12,
    "Mod": 10,
    "RMSNormalization": 23,
    "RandomNormalLike": 1,
    "RandomUniformLike": 1,
    "Reshape": 1,
    "ReverseSequence": 10,
    "RotaryEmbedding": 23,
    "Round": 11,
    "Scatter": 9,
    "ScatterElements": 11,
    "ScatterND": 11,
    "Shape": 1,
    "Shrink": 9,
    "Sign": 9,
    "Slice": 1,
    "Split": 2,
    "Squeeze": 1,
    "TensorScatter": 24,
    "Transpose": 1,
    "Unsqueeze": 1,
}
WITH_ARITHMETIC = {
    "Add": 14,
    "AveragePool": 11,
    "Conv": 11,
    "Div": 14,
    "Erf": 13,
    "Gelu": 20,
    "Gemm": 7,
    "GlobalAveragePool": 1,
    "LeakyRelu": 6,
    "MatMul": 1,
    "MaxPool": 12,
    "Mul": 14,
    "Relu": 6,
    "Sub": 14,
}
# The last operator set, where there is one. The register has a later AveragePool and an earlier MaxPool as well, and
# ONNX Runtime fails to load a model with either: it looks for a kernel of another layout, which is not there.
LAST = {"AveragePool": 18, "Dropout": 11, "Scatter": 10}
# From this one on all that is common has a kernel, where the processor has the arithmetic.
BEST_OPSET = 14


def no_half_kernel(op: str, opset: int, target: Target) -> str:
    """Why ONNX Runtime would not execute a standard operator in float16 on a target; empty if it would."""
    first = (EVERYWHERE | WITH_ARITHMETIC if target.float16 else EVERYWHERE).get(op)
    last = LAST.get(op, opset)
    if first is not None and first <= opset <= last:
        return ""
    which = "" if first is None else f" before operator set {first}" if opset < first else f" after operator set {last}"
    return f"ONNX Runtime has no float16 kernel for {op}{which} on {place(target)}"


def place(target: Target) -> str:
    """What to call a target in a sentence."""
    return "this machine" if target.name == "native" else target.name
