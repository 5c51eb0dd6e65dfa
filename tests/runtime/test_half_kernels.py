"""The table of float16 kernels against ONNX Runtime itself, here and, where it is emulated, on ARM."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxopt.runtime.half_kernels import EVERYWHERE, LAST, WITH_ARITHMETIC, no_half_kernel
from onnxopt.runtime.session import Session
from onnxopt.runtime.target import NATIVE, TARGETS
from onnxopt.targets.emulated import find_emulator

FOREVER = 2**31 - 1
# What the pass never makes float16, kernel or not; and what ONNX Runtime put into ONNX's domain.
APART = (
    "If",
    "Loop",
    "Scan",
    "Optional",
    "Sequence",
    "SplitToSequence",
    "QuantizeLinear",
    "DequantizeLinear",
    "Memcpy",
)
OWN = ("SimplifiedLayerNormalization", "DynamicSlice")
ASK = """
import json, os, sys
sys.path[:0] = sys.argv[1:]
from onnxruntime.capi import onnxruntime_pybind11_state as state
kernels = [k for k in state.get_all_opkernel_def() if k.provider == "CPUExecutionProvider" and not k.domain]
halves = [k for k in kernels if any("tensor(float16)" in t for t in k.type_constraints.values())]
print(json.dumps([[k.op_name, *k.version_range] for k in halves]), flush=True)
os._exit(0)
"""


def registered(*command: str, packages: Sequence[str] = ()) -> dict[str, tuple[int, int]]:
    """By operator: the first and last operator set with a float16 kernel, as an ONNX Runtime itself says."""
    said = subprocess.run([*command, "-I", "-c", ASK, *packages], capture_output=True, check=True).stdout
    found: dict[str, tuple[int, int]] = {}
    for op, first, last in json.loads(said):
        if not op.startswith(APART) and op not in OWN:
            before = found.get(op, (first, last))
            found[op] = min(first, before[0]), max(last, before[1])
    # Before operator set 17 it is one more that ONNX Runtime put there.
    assert found["LayerNormalization"] == (1, FOREVER)
    return found | {"LayerNormalization": (17, FOREVER)}


def table(*parts: dict[str, int]) -> dict[str, tuple[int, int]]:
    return {op: (first, LAST.get(op, FOREVER)) for part in parts for op, first in part.items()}


@pytest.mark.skipif(NATIVE.float16, reason="this processor has float16 arithmetic")
def test_the_table_is_what_the_runtime_has_here() -> None:
    assert registered(sys.executable) == table(EVERYWHERE)


@pytest.mark.slow
def test_the_table_is_what_the_runtime_has_on_arm(arm64: Path) -> None:
    ways = [find_emulator(TARGETS[name]) for name in ("arm64-cortex-a53", "arm64-cortex-a76")]
    with ThreadPoolExecutor(2) as pool:
        without, having = pool.map(lambda way: registered(*way.command, packages=way.packages), ways)
    assert without == table(EVERYWHERE)
    expected = table(EVERYWHERE, WITH_ARITHMETIC)
    differing = {op: (having.get(op), span) for op, span in expected.items() if having.get(op) != span}
    assert differing == {"AveragePool": ((11, FOREVER), (11, 18)), "MaxPool": ((8, FOREVER), (12, FOREVER))}
    assert having.keys() == expected.keys()


CALLS = """Clip(x, k, k); Concat<axis=0>(x, x); Gather(x, i); GatherElements(x, j); Reshape(x, s); Slice(x, i, i)
ScatterElements(x, j, x); Expand(x, s); Unsqueeze(x, i); Mod<fmod=1>(x, x); Max(x, x)
Min(x, x); Transpose(x); Identity(x); Flatten(x); Round(x); Sign(x); Shrink(x); Squeeze(x); IsNaN(x); Shape(x)
Add(x, x); Sub(x, x); Mul(x, x); Div(x, x); MatMul(x, x); Gemm(x, x); Relu(x); LeakyRelu(x); Erf(x); Conv(p, c)
GlobalAveragePool(p); AveragePool<kernel_shape=[2,2]>(p); MaxPool<kernel_shape=[2,2]>(p); GlobalMaxPool(p); Tanh(x)
PRelu(x, x); Sigmoid(x); Softmax(x); Sqrt(x); Exp(x); Pow(x, x); ReduceMax(x); Where(b, x, x); ConvTranspose(p, c)
Pad(x, q); BatchNormalization(p, v, v, v, v); InstanceNormalization(p, v, v); Tile(x, s); Equal(x, x)"""
HALVES = {"k": (), "v": (2,), "c": (2, 2, 1, 1)}
CONSTANTS = {**HALVES, "i": (1,), "s": (2,), "j": (2, 2), "q": (4,), "b": (2, 2)}


@pytest.mark.parametrize("opset", [17, 13])
def test_what_has_no_kernel_here_gets_casts(opset: int, tmp_path: Path) -> None:
    calls = CALLS.replace("\n", "; ").split("; ")
    table = {call: not no_half_kernel(re.split("[(<]", call)[0], opset, NATIVE) for call in calls}
    assert {call: is_executed(call, opset, tmp_path / "as_run.onnx") for call in calls} == table


def is_executed(call: str, opset: int, saved: Path) -> bool:
    """Does ONNX Runtime load a float16 node of this kind without another beside it?"""
    text = f"a (float16[2,2] x, float16[1,2,4,4] p) => (float16 y) {{ y = {call} }}"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    for name, shape in CONSTANTS.items():
        values = np.ones(shape, np.float16 if name in HALVES else bool if name == "b" else np.int64)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    proto.graph.output[0].ClearField("type")
    onnx.save(proto, saved)
    Session(saved, optimize=False, save_optimized=saved)
    return len(onnx.load(saved).graph.node) == 1
