"""Where the time of a run goes: seconds for each node of a model, as ONNX Runtime executes it.

ONNX Runtime records every kernel that it runs. What it merges several nodes into is found by the names that the nodes
were given for the purpose, and its time belongs to the node that does the work: the convolution, not the Relu.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from onnxopt.graph.cost import PRODUCTS
from onnxopt.graph.ir import Node
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Feed
from onnxopt.runtime.marks import mark, marks
from onnxopt.runtime.session import Session

_WARM_UP_RUNS = 3
_RUNS = (5, 200)
# Records take about 1 kB each.
_MAX_RECORDS = 8_000
_RECORD = "_kernel_time"
LAYOUT = ("Transpose", "ReorderInput", "ReorderOutput")
# How many nodes can lie between a product and the last node that its kernel takes in: Add, and a function.
_FUSED = 3


@dataclass(frozen=True)
class Profile:
    """Seconds of one run. ``nodes``: by the label of each of the model's nodes that has a kernel; what is fused into
    another node or folded has none. ``overhead``: kernels that belong to no node of the model. ``total``: the whole
    run, without recording."""

    nodes: Mapping[str, float]
    overhead: float
    total: float


@dataclass(frozen=True)
class Recording:
    """What ONNX Runtime executed: ``kernels``, the nodes that it made of the model; by their names the ``times`` in
    microseconds of each time they ran, over so many ``runs`` of the model; ``total``, seconds of a run unrecorded."""

    kernels: Sequence[onnx.NodeProto]
    times: Mapping[str, Sequence[int]]
    runs: int
    total: float

    def seconds(self) -> dict[str, float]:
        """What the kernels of a name take in a run: the middle half of the times, less what recording adds to each."""
        count = {k: max(round(len(t) / self.runs), 1) for k, t in self.times.items()}
        found = {k: _typical(t) * len(t) / self.runs / 1e6 for k, t in self.times.items()}
        added = max(sum(found.values()) - self.total, 0.0) / max(sum(count.values()), 1)
        return {k: max(s - added * count[k], 0.0) for k, s in found.items()}


def record(model: Model, feed: Feed, *, threads: int = 1, budget_s: float = 0.2) -> Recording:
    """Run a model for about ``budget_s`` seconds, twice: recorded and not.

    Raises ExecutionError when the model fails on the feed.
    """
    with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
        path = Path(folder) / "optimized.onnx"
        session = Session(model, threads=threads, save_optimized=path, profile=Path(folder) / "profile")
        kernels = list(onnx.load(path, load_external_data=False).graph.node)
        runs = _count(_timed(session, feed, _WARM_UP_RUNS), len(kernels), budget_s)
        _timed(session, feed, runs)
        records = json.loads(session.end_profile().read_text())
        total = float(np.median(_timed(session, feed, runs)))
    return Recording(kernels, _by_kernel(records, runs), runs, total)


def profile(model: Model, feed: Feed, *, threads: int = 1, budget_s: float = 0.2) -> Profile:
    """Run a model for about ``budget_s`` seconds, twice: recorded and not.

    The middle half of each kernel's times counts, less what recording adds to every kernel. Changes of layout are
    counted with the step from or to integers beside them, or else with the node whose result they hand on. Raises
    ExecutionError when the model fails on the feed.
    """
    labels = [_label(node) for node in model.nodes()]
    marked = model.clone()
    mark(marked)
    nodes = list(marked.nodes())
    recording = record(marked, feed, threads=threads, budget_s=budget_s)
    kernels = recording.kernels
    seconds = recording.seconds()
    found: dict[str, float] = defaultdict(float)
    overhead = 0.0
    owners = _owners(kernels, nodes)
    shares: dict[str, int] = defaultdict(int)
    for kernel in kernels:
        shares[kernel.name] += 1
    for i, kernel in enumerate(kernels):
        own = seconds.get(kernel.name, 0.0) / shares[kernel.name]
        if i in owners:
            found[labels[owners[i]]] += own
        else:
            overhead += own
    return Profile(dict(found), overhead, recording.total)


def _timed(session: Session, feed: Feed, runs: int) -> list[float]:
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        session.run(feed)
        times.append(time.perf_counter() - started)
    return times


def _count(warm_up: Sequence[float], kernels: int, budget_s: float) -> int:
    """How many runs fit into the time and the records."""
    least, most = _RUNS
    return max(least, min(most, int(budget_s / min(warm_up)), _MAX_RECORDS // max(kernels, 1)))


def _by_kernel(records: Iterable[Mapping[str, object]], runs: int) -> dict[str, list[int]]:
    """The times of each kernel of the main graph, without those of the warm-up."""
    times: dict[str, list[int]] = defaultdict(list)
    for record in records:
        name = str(record["name"])
        if record.get("cat") == "Node" and name.endswith(_RECORD):
            times[name.removesuffix(_RECORD)].append(int(str(record["dur"])))
    return {k: t[round(len(t) * _WARM_UP_RUNS / (runs + _WARM_UP_RUNS)) :] for k, t in times.items()}


def _typical(times: Sequence[int]) -> float:
    """The mean of the middle half: whole microseconds add up to fractions, and disturbances do not count."""
    ordered = np.sort(times)
    quarter = len(ordered) // 4
    return float(ordered[quarter : len(ordered) - quarter].mean())


def _owners(kernels: Sequence[onnx.NodeProto], nodes: Sequence[Node]) -> dict[int, int]:
    """The number of the node that each kernel works for, by the kernel's place."""
    maker = {t: i for i, k in enumerate(kernels) for t in k.output}
    readers = defaultdict(list)
    for i, kernel in enumerate(kernels):
        for tensor in kernel.input:
            readers[tensor].append(i)
    named = {m for k in kernels for m in marks(k.name)}

    def work(i: int) -> int | None:
        """The node that a kernel is, or that it makes the output of."""
        kernel = kernels[i]
        found = marks(kernel.name) or [m for t in kernel.output for m in marks(t)]
        return _product(kernel.op_type, nodes[found[0]], nodes, named) if found else None

    def layout(i: int) -> int | None:
        """Where a change of layout belongs: to a dequantization behind, or to what lies before, or else behind."""
        behind = [r for t in kernels[i].output for r in readers[t]]
        for r in behind:
            if kernels[r].op_type == "DequantizeLinear":
                return work(r)
        before = [maker[t] for t in kernels[i].input if t in maker]
        for place in (*before, *behind):
            if kernels[place].op_type not in LAYOUT:
                return work(place)
        return None

    found = {i: layout(i) if k.op_type in LAYOUT and not marks(k.name) else work(i) for i, k in enumerate(kernels)}
    return {i: owner for i, owner in found.items() if owner is not None}


def _product(kernel: str, node: Node, nodes: Sequence[Node], named: set[int]) -> int:
    """The product before a node that gave a product's kernel its name; the node itself otherwise."""
    number = {id(n): i for i, n in enumerate(nodes)}
    if node.op in PRODUCTS or not any(p in kernel for p in ("Conv", "Gemm", "MatMul")):
        return number[id(node)]
    front = [node]
    for _ in range(_FUSED):
        front = [p for n in front for t in n.inputs for p in t.inputs]
        for place in front:
            if place.op in PRODUCTS and number[id(place)] not in named:
                return number[id(place)]
    return number[id(node)]


def _label(node: Node) -> str:
    return str(node.name or next((t.name for t in node.outputs if t.name), node.op))
