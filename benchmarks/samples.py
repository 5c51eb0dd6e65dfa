"""What each pass makes of the sample models, as a table.

    python benchmarks/samples.py

Bytes are those of the file, compressed those that zstd makes of it. Speed is a ratio: both models run in turn in one
process, batch 1, one thread.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from onnxopt import DataOptions, Gates, RunOptions, load, optimize
from onnxopt.core.spec import parse
from onnxopt.graph.compressed import compressed_bytes

SAMPLES = Path(__file__).parents[1] / "sample_models"
SPECS = (
    "quant",
    "prune:ratio=0.3",
    "svd:ratio=0.5",
    "prune:ratio=0.3,quant",
    "prune:ratio=0.3,svd:ratio=0.5,quant",
    "sparsify",
    "sparsify:ratio=0.7",
    "sparsify:pattern=2:4",
    "sparsify:criterion=obs",
    "sparsify:criterion=magnitude",
    "sparsify,quant",
)


def row(model: str, spec: str, folder: Path) -> str:
    """One run as a line of a Markdown table; gates are not asked, figures are."""
    report = optimize(
        SAMPLES / f"{model}.onnx",
        folder / "out.onnx",
        parse(spec),
        data=DataOptions(data=SAMPLES / "digits_calib.npz", test_data=SAMPLES / "digits_test.npz"),
        gates=Gates(),
        options=RunOptions(force=True),
    )
    assert report.input is not None
    assert report.output is not None
    validation = report.validation[0]
    assert validation.accuracy is not None
    assert validation.accuracy_reference is not None
    cells = [
        model,
        f"`{spec}`",
        f"{report.output.bytes / report.input.bytes:.0%}",
        f"{_compressed(folder / 'out.onnx') / _compressed(SAMPLES / f'{model}.onnx'):.0%}",
        f"{(report.output.macs or 0) / (report.input.macs or 1):.0%}",
        f"{validation.sqnr_db:.1f}",
        f"{100 * (validation.accuracy - validation.accuracy_reference):+.2f}",
        f"{validation.speedup:.2f}",
        f"{sum(step.seconds for step in report.passes):.1f}",
        report.verdict,
    ]
    return "| " + " | ".join(cells) + " |"


def _compressed(path: Path) -> int:
    return compressed_bytes(load(path))


def main() -> None:
    """Every sample model through every spec."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["digits_resnet", "digits_mlp", "digits_transformer"])
    parser.add_argument("--specs", nargs="*", default=list(SPECS))
    arguments = parser.parse_args()
    print("| model | passes | bytes | compressed | MACs | SQNR, dB | accuracy, points | speed | seconds | verdict |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.models:
            for spec in arguments.specs:
                print(row(model, spec, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
