"""Does an emulator run ONNX Runtime, and does it calculate right?"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxopt.errors import ExecutionError, TargetError
from onnxopt.runtime.exchange import Job
from onnxopt.runtime.local import Launch, run_in_child

# The oldest processor in the table and one of the newest: other kernels, and old emulators lack the second.
PROCESSORS = ("cortex-a53", "neoverse-v1")
_TIMEOUT_S = 180


def check(emulator: Path, system: Path, python: Path, site: Path, onnxruntime: str) -> None:
    """Multiply integers on both processors. Raises TargetError where that fails or is wrong, or runs something else."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (5, 96), np.uint8)
    w = rng.integers(-128, 128, (96, 24), np.int8)
    right = x.astype(np.int32) @ w.astype(np.int32)
    with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
        model = Path(folder) / "product.onnx"
        onnx.save(_product(w), model)
        job = Job(models=(model,), feeds=[{"x": x}], timeout_s=_TIMEOUT_S)
        for processor in PROCESSORS:
            command = (str(emulator), "-cpu", processor, "-L", str(system), str(python), "-I")
            launch = Launch(command=command, packages=(str(site),), where=f"emulated as {processor}")
            try:
                answer = run_in_child(job, launch)
            except (ExecutionError, TargetError) as error:
                raise TargetError(f"the self-test failed with {emulator}: {error}") from error
            if not np.array_equal(answer.runs[0].outputs[0]["y"], right):
                raise TargetError(f"{emulator} calculates wrong as {processor}: products of integers are not exact")
            if (answer.machine, answer.onnxruntime) != ("aarch64", onnxruntime):
                raise TargetError(f"the self-test ran ONNX Runtime {answer.onnxruntime} on {answer.machine}")


def _product(w: np.ndarray[tuple[int, int], np.dtype[np.int8]]) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, ["N", w.shape[0]])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, ["N", w.shape[1]])
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "product", [x], [y], [numpy_helper.from_array(w, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
