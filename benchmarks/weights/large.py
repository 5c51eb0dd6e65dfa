"""How much memory `quant-weights` takes for a model that is far larger than the cache: a transformer of random weights.

    python benchmarks/weights/large.py FOLDER --gigabytes 6

writes it into the folder, with its weights beside it, and runs the command line on it in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

sys.path.append(str(Path(__file__).parents[1] / "common"))

import footprint

WIDTH, ENTRIES, LENGTH = 2048, 32_000, 16
_LAYER_BYTES = 12 * WIDTH**2 * 4
_PIECE = 2**24


class Writer:
    """Weights that go straight into the file."""

    def __init__(self, path: Path) -> None:
        self.path, self.file, self.rng = path, path.open("wb"), np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, *shape: int, spread: float = 0.02) -> str:
        tensor = TensorProto(name=f"w{len(self.weights)}", data_type=TensorProto.FLOAT, dims=shape)
        size, start = int(np.prod(shape)), self.file.tell()
        for done in range(0, size, _PIECE):
            part = self.rng.standard_normal(min(_PIECE, size - done), np.float32)
            self.file.write((part * np.float32(spread)).data)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.path.name), ("offset", str(start)), ("length", str(4 * size))):
            tensor.external_data.add(key=key, value=value)
        self.weights.append(tensor)
        return tensor.name

    def op(self, op: str, *inputs: str, **attributes: Any) -> str:
        made = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [made], f"{op}{len(self.nodes)}", **attributes))
        return made

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        return self.op("MatMul", x, self.weight(inputs, outputs))


def write(path: Path, size_bytes: float) -> None:
    """A transformer with one head, and an embedding that its last layer shares."""
    made = Writer(path.with_name(f"{path.name}.data"))
    table, level = made.weight(ENTRIES, WIDTH), made.weight(WIDTH, spread=1.0)
    x = made.op("Gather", table, "ids")
    for _ in range(round((size_bytes - 4 * ENTRIES * WIDTH) / _LAYER_BYTES)):
        y = made.op("LayerNormalization", x, level)
        q, k, v = (made.linear(y, WIDTH, WIDTH) for _ in range(3))
        scores = made.op("Softmax", made.op("MatMul", q, made.op("Transpose", k, perm=[0, 2, 1])))
        x = made.op("Add", x, made.linear(made.op("MatMul", scores, v), WIDTH, WIDTH))
        y = made.op("Relu", made.linear(made.op("LayerNormalization", x, level), WIDTH, 4 * WIDTH))
        x = made.op("Add", x, made.linear(y, 4 * WIDTH, WIDTH))
    made.nodes.append(helper.make_node("MatMul", [x, made.op("Transpose", table, perm=[1, 0])], ["logits"], "logits"))
    made.file.close()
    graph = helper.make_graph(
        made.nodes,
        "large",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, LENGTH])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, LENGTH, ENTRIES])],
        made.weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path.write_bytes(proto.SerializeToString())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--passes", default="quant-weights:bits=4")
    parser.add_argument("--validate", action="store_true", help="also run both models: takes the memory of both")
    options = parser.parse_args()
    source, output = options.folder / "large.onnx", options.folder / "large.opt.onnx"
    if not source.exists():
        write(source, options.gigabytes * 1e9)
    command = [sys.executable, "-m", "onnxopt", "optimize", str(source), "-o", str(output), "--passes", options.passes]
    used = footprint.run([*command, *([] if options.validate else ["--no-validate"])])
    sizes = [sum(p.stat().st_size for p in m.parent.glob(f"{m.name}*")) for m in (source, output)]
    print(json.dumps({"bytes": sizes, "of_the_file": used.peak_bytes / sizes[0]} | asdict(used), indent=1))


if __name__ == "__main__":
    main()
