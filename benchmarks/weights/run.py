"""Weights of 4 bits in blocks of 32, by `quant-weights` and by ONNX Runtime's own quantizer, on the same samples.

    python benchmarks/weights/run.py --peer PYTHON NAME=MODEL,CALIBRATION,TEST...

PYTHON is an interpreter with onnxruntime and onnx_ir. Each tool runs in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from onnxopt.data.dataset import open_dataset
from onnxopt.graph import io
from onnxopt.runtime.session import Session

_RUNS = 200
_OURS = {"nearest": "quant-weights:rounding=nearest", "no data": "quant-weights", "data": "quant-weights"}


def judge(source: Path, result: Path, test: str) -> str:
    """SQNR over all float outputs, bytes, and the time of one sample, as shares of the original's."""
    original = io.load(source)
    sessions = Session(original), Session(result)
    samples = open_dataset(test, original.inputs, samples=128)
    power = error = 0.0
    for feed in samples.batches(1):
        before, after = (s.run(feed) for s in sessions)
        power += sum(float(np.square(v, dtype=np.float64).sum()) for v in before.values())
        error += sum(float(np.square(v - after[k], dtype=np.float64).sum()) for k, v in before.items())
    feed = next(iter(samples.batches(1)))
    times = np.array([[_seconds(s, feed) for s in sessions] for _ in range(_RUNS)])
    slow, quick = np.median(times, axis=0)
    size = result.stat().st_size / source.stat().st_size
    return f"{10 * np.log10(power / max(error, 1e-30)):.1f} dB | {size:.0%} | {slow / quick:.2f}"


def _seconds(session: Session, feed: dict[str, np.ndarray]) -> float:
    started = time.perf_counter()
    session.run(feed)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True)
    parser.add_argument("models", nargs="+")
    options = parser.parse_args()
    print("| model | tool | SQNR | bytes | speed | seconds |\n|---|---|---|---|---|---|")
    for text in options.models:
        name, _, files = text.partition("=")
        source, calibration, test = files.split(",")
        for tool in (*_OURS, "ONNX Runtime, default", "ONNX Runtime, hqq"):
            with tempfile.TemporaryDirectory() as folder:
                output = Path(folder) / "result.onnx"
                command = _command(tool, options.peer, source, calibration, output)
                started = time.perf_counter()
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                seconds = time.perf_counter() - started
                lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
                found = judge(Path(source), output, test) if output.exists() else f"{lines[-1][:80]} | |"
                print(f"| {name} | {tool} | {found} | {seconds:.0f} |", flush=True)


def _command(tool: str, peer: str, source: str, calibration: str, output: Path) -> list[str]:
    if tool not in _OURS:
        return [peer, str(Path(__file__).with_name("use_onnxruntime.py")), source, str(output), tool.split(", ")[1]]
    data = ["--data", calibration] if tool == "data" else []
    passes = ["--passes", _OURS[tool], "--no-validate", "-o", str(output)]
    return [sys.executable, "-m", "onnxopt", "optimize", source, *passes, *data]


if __name__ == "__main__":
    main()
