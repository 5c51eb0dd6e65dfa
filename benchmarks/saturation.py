"""What a model loses on x86 processors without VNNI: quantized as usual, and for such a processor.

    python benchmarks/saturation.py sample_models/digits_resnet.onnx \
        --data sample_models/digits_calib.npz --test-data sample_models/digits_test.npz

Runs on a processor that has VNNI, and again with VNNI and AVX-512 masked.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from onnxopt import load, open_dataset
from onnxopt.check.quality import Comparison, Quality
from onnxopt.core.manager import PassManager
from onnxopt.core.spec import parse
from onnxopt.data.dataset import Dataset
from onnxopt.graph.io import save
from onnxopt.runtime.exchange import Job
from onnxopt.runtime.probe import saturates
from onnxopt.runtime.target import NATIVE, X86_AVX2, X86_AVX512_VNNI, Target
from onnxopt.targets.masked import find_mask
from onnxopt.targets.native import Native
from onnxopt.targets.way import Unavailable, Way


def quantized(arguments: argparse.Namespace, target: Target, path: Path) -> int:
    """Save the model quantized for a target; returns how many channels have fewer bits."""
    model = load(arguments.model)
    data = open_dataset(arguments.data, model.inputs, preprocess=arguments.preprocess, samples=arguments.samples)
    report = PassManager(parse(arguments.passes)).run(model, data, target=target)
    save(model, path)
    return int(report.passes[-1].figures["reduced_channels"])


def quality(data: Dataset, original: Path, model: Path, way: Way) -> Quality:
    """A model there against the original here."""
    feeds = list(data.batches(32))
    (expected,) = Native().run(Job(models=(original,), feeds=feeds)).runs
    (found,) = way.run(Job(models=(model,), feeds=feeds)).runs
    comparison = Comparison(data.labels)
    for feed, here, there in zip(feeds, expected.outputs, found.outputs, strict=True):
        comparison.add(feed, here, there)
    return comparison.result(data.count)


def main() -> None:
    """Quantize one model twice, run both on two kinds of processor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--test-data", required=True)
    parser.add_argument("--preprocess")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--passes", default="quant")
    arguments = parser.parse_args()
    masked = find_mask(X86_AVX2)
    if saturates(NATIVE) or isinstance(masked, Unavailable):
        sys.exit("needs Linux on a processor with VNNI, and capstone")
    inputs = load(arguments.model).inputs
    data = open_dataset(arguments.test_data, inputs, preprocess=arguments.preprocess, samples=arguments.samples)
    errors = []
    with tempfile.TemporaryDirectory() as folder:
        for target in (X86_AVX512_VNNI, X86_AVX2):
            path = Path(folder) / f"{target.name}.onnx"
            reduced = quantized(arguments, target, path)
            for processor, way in (("VNNI", Native()), ("AVX2", masked)):
                found = quality(data, Path(arguments.model), path, way)
                errors.append(10 ** (-found.sqnr_db / 10))
                agreement = "" if found.agreement is None else f", {found.agreement:.1%} agree"
                print(
                    f"for {target.name} ({reduced} channels reduced) on {processor}: {found.sqnr_db:.2f} dB{agreement}"
                )
    print(f"error on AVX2 over that on VNNI, each with its own model: {errors[3] / errors[0]:.2f}")
    print(f"the same without the guard: {errors[1] / errors[0]:.2f}")


if __name__ == "__main__":
    main()
