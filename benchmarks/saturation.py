"""What a model loses on x86 processors without VNNI: quantized as usual, and for such a processor.

    python benchmarks/saturation.py sample_models/digits_resnet.onnx \
        --data sample_models/digits_calib.npz --test-data sample_models/digits_test.npz

Runs on a processor that has VNNI, and again under valgrind, which has no more than AVX2 and gives the same bits as a
processor without VNNI, some fifty times slower.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from onnxopt import load, open_dataset
from onnxopt.check.quality import Comparison, Quality
from onnxopt.core.manager import PassManager
from onnxopt.core.spec import parse
from onnxopt.data.dataset import Dataset
from onnxopt.graph.io import save
from onnxopt.runtime.probe import saturates
from onnxopt.runtime.session import Session
from onnxopt.runtime.target import NATIVE, X86_AVX2, X86_AVX512_VNNI, Target


def quantized(arguments: argparse.Namespace, target: Target, path: Path) -> int:
    """Save the model quantized for a target; returns how many channels have fewer bits."""
    model = load(arguments.model)
    data = open_dataset(arguments.data, model.inputs, preprocess=arguments.preprocess, samples=arguments.samples)
    report = PassManager(parse(arguments.passes)).run(model, data, target=target)
    save(model, path)
    return int(report.passes[-1].figures["reduced_channels"])


def without_vnni(model: Path, feeds: Path) -> dict[str, np.ndarray]:
    """What a model answers under valgrind."""
    answers = model.with_suffix(".npz")
    command = ["valgrind", "--tool=none", "-q", sys.executable, __file__, "--child", *map(str, (model, feeds, answers))]
    subprocess.run(command, check=True)
    with np.load(answers) as found:
        return dict(found)


def child(model: str, feeds: str, answers: str) -> None:
    """Run a model on stored feeds, one after the other, and store its answers."""
    if not saturates(NATIVE):
        sys.exit("valgrind shows a processor whose products do not overflow")
    session = Session(model)
    with np.load(feeds) as stored:
        count = max(int(name.split(".", 1)[0]) for name in stored) + 1
        batches = [
            session.run({n.split(".", 1)[1]: stored[n] for n in stored if n.startswith(f"{i}.")}) for i in range(count)
        ]
    save_arrays(answers, {f"{i}.{name}": value for i, batch in enumerate(batches) for name, value in batch.items()})


def save_arrays(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Save arrays by name."""
    np.savez(path, allow_pickle=False, **arrays)


def quality(data: Dataset, reference: Session, answers: dict[str, np.ndarray] | Session) -> Quality:
    """Answers against those of the float model."""
    comparison = Comparison(data.labels)
    for i, feed in enumerate(data.batches(32)):
        expected = reference.run(feed)
        found = answers.run(feed) if isinstance(answers, Session) else {n: answers[f"{i}.{n}"] for n in expected}
        comparison.add(feed, expected, found)
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
    if saturates(NATIVE) or shutil.which("valgrind") is None:
        sys.exit("needs a processor with VNNI, and valgrind")
    inputs = load(arguments.model).inputs
    data = open_dataset(arguments.test_data, inputs, preprocess=arguments.preprocess, samples=arguments.samples)
    reference = Session(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        feeds = Path(folder) / "feeds.npz"
        stored = {f"{i}.{n}": v for i, feed in enumerate(data.batches(32)) for n, v in feed.items()}
        save_arrays(feeds, stored)
        errors = []
        for target in (X86_AVX512_VNNI, X86_AVX2):
            path = Path(folder) / f"{target.name}.onnx"
            reduced = quantized(arguments, target, path)
            for processor in ("VNNI", "AVX2"):
                answers = Session(path) if processor == "VNNI" else without_vnni(path, feeds)
                found = quality(data, reference, answers)
                errors.append(10 ** (-found.sqnr_db / 10))
                agreement = "" if found.agreement is None else f", {found.agreement:.1%} agree"
                print(
                    f"for {target.name} ({reduced} channels reduced) on {processor}: {found.sqnr_db:.2f} dB{agreement}"
                )
    print(f"error on AVX2 over that on VNNI, each with its own model: {errors[3] / errors[0]:.2f}")
    print(f"the same without the guard: {errors[1] / errors[0]:.2f}")


if __name__ == "__main__":
    child(*sys.argv[2:]) if sys.argv[1:2] == ["--child"] else main()
