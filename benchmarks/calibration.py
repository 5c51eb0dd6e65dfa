"""How long calibration takes, as a ratio to the plain float forward passes over the same samples.

    python benchmarks/calibration.py sample_models/digits_resnet.onnx --data sample_models/digits_calib.npz

Watches what ``quant`` watches: the tensors between the nodes. The plain passes run at the same batch sizes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

from onnxopt import load, open_dataset
from onnxopt.core.context import Context
from onnxopt.core.manager import PassManager
from onnxopt.core.spec import parse
from onnxopt.numerics.ranges import METHODS
from onnxopt.runtime.session import Session


def best(work: Callable[[], object], repeats: int = 5) -> float:
    """The shortest of some runs, in seconds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    """Time one model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data")
    parser.add_argument("--preprocess")
    parser.add_argument("--samples", type=int)
    arguments = parser.parse_args()
    model = load(arguments.model)
    data = open_dataset(arguments.data, model.inputs, preprocess=arguments.preprocess, samples=arguments.samples)
    PassManager(parse("fold-bn")).run(model, data)
    relus = {"Relu", "Clip"}
    watched = [
        t.name
        for n in model.graph.nodes
        for t in n.outputs
        if t.name and not any(r.op in relus for r in t.outputs) and n.is_standard
    ]
    context, session = Context(model, data), Session(model)

    def forward() -> None:
        for feed in data.batches(32):
            session.run(feed)

    plain = best(forward)
    print(f"plain float passes: {plain:.3f} s over {data.count} samples, {len(watched)} tensors watched")
    for method in METHODS:
        seconds = best(partial(context.statistics, model, watched, method))
        print(f"{method}: {seconds / plain:.2f} times the plain passes")


if __name__ == "__main__":
    main()
