"""How long a layer takes with other numbers of channels: measured on this machine in ONNX Runtime, in floats.

ONNX Runtime keeps channels in blocks where it can, and what a layer costs depends on whether its neighbours hand them
on so. Each layer is therefore timed between two others that would work with blocks: it pays for its own kernel, for
taking blocks apart that it cannot read, and for blocks to be made of what it wrote without. Many layers run in one
model in turns, so that what disturbs one disturbs all, and none finds its weights in the innermost cache.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxopt.graph.ir import Node, is_constant
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Feed
from onnxopt.numerics.packing import packed
from onnxopt.runtime.machine import machine
from onnxopt.runtime.marks import marks
from onnxopt.runtime.profile import LAYOUT, Recording, record
from onnxopt.runtime.session import __version__ as runtime_version

_FILE = "layer-times.json"
_MAX_BYTES = 2**24
_MAX_ENTRIES = 50_000
# Layers timed in one model, and the elements that they may read, write and weigh together.
_TOGETHER, _ELEMENTS = 32, 2**26
_TRIES, _BUDGET_S = 3, 0.003
# Channels of the neighbours: a whole block on every processor. A layer that reads fewer than four reads pictures.
_BLOCK, _FEWEST = 16, 4
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_GEOMETRY = ("strides", "pads", "dilations", "output_padding", "output_shape")


@dataclass(frozen=True)
class Layer:
    """A layer's sizes. ``input`` is (N, C, height, width) for Conv and ConvTranspose, (rows, C) for Gemm and MatMul;
    ``outputs`` its output channels. ``geometry`` holds its attributes about space by name, sorted."""

    op: str
    input: tuple[int, ...]
    outputs: int
    kernel: tuple[int, ...] = ()
    group: int = 1
    geometry: tuple[tuple[str, tuple[int, ...] | str], ...] = ()

    @classmethod
    def of(cls, node: Node, shapes: Mapping[str, tuple[int, ...]]) -> Layer | None:
        """What a node would be timed as, given shapes of tensors by name; None where it is no such layer."""
        if not node.is_standard or len(node.inputs) < 2:
            return None
        x, weight = (tuple(t.shape) if is_constant(t) else shapes.get(t.name, ()) for t in node.inputs[:2])
        if node.op in _CONVOLUTIONS and len(x) > 2 and len(weight) == len(x):
            group = int(node.attrs.get("group", 1))
            outputs = weight[0] if node.op == "Conv" else weight[1] * group
            geometry = [(k, tuple(map(int, node.attrs[k]))) for k in sorted(_GEOMETRY) if k in node.attrs]
            pads = [("auto_pad", str(node.attrs["auto_pad"]))] if "auto_pad" in node.attrs else []
            return cls(node.op, x, outputs, weight[2:], group, (*pads, *geometry))
        if node.op in ("Gemm", "MatMul") and len(weight) == 2 and len(x) > 1 and not node.attrs.get("transA", 0):
            outputs = weight[0 if node.attrs.get("transB", 0) else 1]
            return cls(node.op, (prod(x[:-1]), x[-1]), outputs)
        return None

    def resized(self, inputs: int, outputs: int) -> Layer:
        """The same with other numbers of channels. Groups keep their size where they can, and their number if not."""
        group = self.group
        if group > 1:
            width = self.input[1] // group
            group = inputs // width if inputs % width == 0 and outputs % (inputs // width) == 0 else group
        return replace(self, input=(self.input[0], inputs, *self.input[2:]), outputs=outputs, group=group)

    @property
    def weight(self) -> tuple[int, ...]:
        """The shape of its weight."""
        if self.op not in _CONVOLUTIONS:
            return self.input[1], self.outputs
        first, second = (self.outputs, self.input[1]) if self.op == "Conv" else (self.input[1], self.outputs)
        return first, second // self.group, *self.kernel


class LayerTimes:
    """Seconds by layer. Each is measured once; ``folder`` keeps them between runs, for this machine, this version of
    ONNX Runtime and this number of threads. A file there that is damaged is made anew."""

    def __init__(self, threads: int = 1, folder: str | Path | None = None) -> None:
        self._threads = threads
        self._path = None if folder is None else Path(folder) / _FILE
        host = machine()
        facts = [host["cpu"], host["architecture"], host["instructions"], host["cores"], runtime_version, threads]
        self._where = sha256(json.dumps(facts).encode()).hexdigest()[:16]
        self._known = dict(_stored(self._path).get(self._where, {}))

    def seconds(self, layer: Layer) -> float:
        """What one run of a layer takes. Raises ExecutionError for one that ONNX Runtime refuses."""
        key = _key(layer)
        if key not in self._known:
            self.measure([layer])
        return self._known[key]

    def measure(self, layers: Iterable[Layer]) -> None:
        """Time those that are not known yet, together, which is quicker and fairer than one by one."""
        missing = list({_key(layer): layer for layer in layers if _key(layer) not in self._known}.values())
        for part in packed(missing, _elements, _ELEMENTS, _TOGETHER):
            for layer, seconds in zip(part, _measured(part, self._threads), strict=True):
                self._known[_key(layer)] = seconds
        if missing:
            self._save()

    def _save(self) -> None:
        """Write the table beside those of other machines; a folder that cannot be written to costs only time."""
        if self._path is None:
            return
        tables = _stored(self._path)
        own = tables.get(self._where, {}) | self._known
        own = dict(list(own.items())[-_MAX_ENTRIES:])
        text = json.dumps(tables | {self._where: own})
        if len(text) > _MAX_BYTES:
            text = json.dumps({self._where: own})
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".", suffix=".tmp")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(text)
                os.replace(name, self._path)
            except BaseException:
                os.unlink(name)
                raise


def _key(layer: Layer) -> str:
    return json.dumps(list(asdict(layer).values()))


def _stored(path: Path | None) -> dict[str, dict[str, float]]:
    """What a file holds that could have been written here: seconds by layer by machine."""
    if path is None:
        return {}
    try:
        with path.open("rb") as file:
            tables = json.loads(file.read(_MAX_BYTES + 1))
    except (OSError, ValueError, RecursionError):
        return {}
    tables = tables if isinstance(tables, dict) else {}
    return {
        where: {k: s for k, s in table.items() if isinstance(s, float) and isfinite(s) and s >= 0}
        for where, table in tables.items()
        if isinstance(table, dict) and len(table) <= _MAX_ENTRIES
    }


def _elements(layer: Layer) -> int:
    return prod(layer.weight) + prod(layer.input) * (1 + layer.outputs // layer.input[1])


def _measured(layers: Sequence[Layer], threads: int) -> list[float]:
    """The best of some tries: what else runs on the machine only ever adds."""
    model, feed = _model(layers)
    budget = _BUDGET_S * len(layers)
    tries = [_spent(record(model, feed, threads=threads, budget_s=budget)) for _ in range(_TRIES)]
    return [min(t[i] for t in tries) for i in range(len(layers))]


def _spent(recording: Recording) -> dict[int, float]:
    """Seconds by layer: of its kernels, of layouts changed before it, and of blocks made behind it."""
    kernels = recording.kernels
    owner = {i: marks(k.name)[0] for i, k in enumerate(kernels) if marks(k.name)}
    by_tensor = {t: n for i, n in owner.items() for t in kernels[i].output}
    by_reader = {t: n for i, n in owner.items() for t in kernels[i].input}
    for i, kernel in enumerate(kernels):
        if i not in owner and kernel.op_type in LAYOUT:
            behind = by_reader.get(kernel.output[0])
            before = by_tensor.get(kernel.input[0]) if kernel.op_type != "ReorderOutput" else None
            if (mine := behind if behind is not None else before) is not None:
                owner[i] = mine
    seconds = recording.seconds()
    found: dict[int, float] = defaultdict(float)
    for i, n in owner.items():
        found[n] += seconds.get(kernels[i].name, 0.0)
    return found


def _model(layers: Sequence[Layer]) -> tuple[Model, Feed]:
    """Every layer between its neighbours, side by side. Only the layers' names bear marks."""
    net = _Net()
    for i, layer in enumerate(layers):
        net.add(layer, f"onnxopt.{i}.")
    return net.model(), net.feed


class _Net:
    """A graph under construction, with random weights."""

    def __init__(self) -> None:
        self.feed: Feed = {}
        self._rng = np.random.default_rng(0)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def add(self, layer: Layer, name: str) -> None:
        """A layer, and what lies before and behind it."""
        convolves, inputs = layer.op in _CONVOLUTIONS, layer.input[1]
        wraps = convolves and len(layer.input) == 4
        attributes = dict(layer.geometry) | ({"group": layer.group} if convolves else {})
        if wraps and inputs >= _FEWEST:
            picture = self._input((layer.input[0], _BLOCK, *layer.input[2:]))
            x = self._node("Conv", picture, (inputs, _BLOCK, 1, 1), f"before {name[:-1]}")
        else:
            x = self._input(layer.input)
        y = self._node(layer.op, x, layer.weight, name, **attributes)
        if wraps:  # one pixel is enough to want blocks
            y = self._node("Conv", y, (_BLOCK, layer.outputs, 1, 1), f"behind {name[:-1]}", strides=(2**15, 2**15))
        self._outputs.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, None))

    def model(self) -> Model:
        inputs = [helper.make_tensor_value_info(k, TensorProto.FLOAT, v.shape) for k, v in self.feed.items()]
        graph = helper.make_graph(self._nodes, "layers", inputs, self._outputs, self._weights)
        return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))

    def _input(self, shape: tuple[int, ...]) -> str:
        name = "x" + "x".join(map(str, shape))
        if name not in self.feed:
            self.feed[name] = self._rng.random(shape, np.float32)
        return name

    def _node(self, op: str, x: str, weight: tuple[int, ...], name: str, **attributes: Any) -> str:
        values = (self._rng.random(weight, np.float32) - 0.5) / prod(weight) ** 0.5
        self._weights.append(numpy_helper.from_array(values.astype(np.float32), f"{name} weight"))
        self._nodes.append(helper.make_node(op, [x, f"{name} weight"], [f"{name} made"], name, **attributes))
        return f"{name} made"
