"""Peak memory of exact passes over a large model, as a ratio to its size on disk.

    python benchmarks/memory.py --gigabytes 3

Writes a model of convolutions with BatchNormalization and of MatMuls, its weights in a file beside it, into a scratch
folder; runs ``onnxopt optimize`` on it in a process of its own; prints that process's peak resident memory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

sys.path.append(str(Path(__file__).parent / "common"))

import footprint

CHANNELS = 1024
WIDTH = 4096


def write_model(folder: Path, gigabytes: float) -> Path:
    """Half of the bytes in 3x3 convolutions, each followed by BatchNormalization, half in square MatMuls."""
    rng = np.random.default_rng(0)
    nodes, tensors = [], []
    data = folder / "big.onnx.data"
    with data.open("wb") as file:

        def weight(name: str, shape: tuple[int, ...], low: float, high: float) -> str:
            values = rng.uniform(low, high, shape).astype(np.float32)
            tensor = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", data.name), ("offset", file.tell()), ("length", values.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            file.write(values.tobytes())
            tensors.append(tensor)
            return name

        half = gigabytes * 2**30 / 2
        last = "x"
        for i in range(max(1, round(half / (CHANNELS * CHANNELS * 9 * 4)))):
            nodes.append(
                helper.make_node("Conv", [last, weight(f"w{i}", (CHANNELS, CHANNELS, 3, 3), -0.01, 0.01)], [f"c{i}"])
            )
            norm = [weight(f"{part}{i}", (CHANNELS,), 0.5, 1.5) for part in ("scale", "shift", "mean", "var")]
            nodes.append(helper.make_node("BatchNormalization", [f"c{i}", *norm], [f"n{i}"]))
            last = f"n{i}"
        nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
        nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
        nodes.append(helper.make_node("MatMul", ["flat", weight("enter", (CHANNELS, WIDTH), -0.01, 0.01)], ["m"]))
        last = "m"
        for i in range(max(1, round(half / (WIDTH * WIDTH * 4)))):
            nodes.append(helper.make_node("MatMul", [last, weight(f"m{i}", (WIDTH, WIDTH), -0.01, 0.01)], [f"y{i}"]))
            last = f"y{i}"
    graph = helper.make_graph(
        nodes,
        "big",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", CHANNELS, 128, 128])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["N", WIDTH])],
        tensors,
    )
    path = folder / "big.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return path


def main() -> None:
    """Generate, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--passes", default="fold-bn,fold-constants,clean")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder), arguments.gigabytes)
        size = sum(p.stat().st_size for p in Path(folder).iterdir())
        command = [sys.executable, "-m", "onnxopt", "optimize", str(path), "--passes", arguments.passes]
        used = footprint.run([*command, "--no-validate", "--quiet"])
        peak = used.peak_bytes
        print(f"exit {used.exit}, file {size / 2**30:.2f} GiB, peak {peak / 2**30:.2f} GiB, ratio {peak / size:.2f}")


if __name__ == "__main__":
    main()
