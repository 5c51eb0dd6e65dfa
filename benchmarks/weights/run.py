"""Weights of 4 bits in blocks of 32, by every tool, on the same samples, and one scorer for all.

    python benchmarks/weights/run.py [--models DIR --samples DIR] [--only MODEL,...] [--tools TOOL,...] [--timing 0]

The sample transformer is always there; DIR of models holds ``NAME.onnx`` for the other names of MODELS, DIR of samples
``NAME.calib.npz`` and ``NAME.eval.npz``, as ``benchmarks/quant/run.py --prepare-only`` makes them. Every tool runs in
one thread in a process of its own, in an environment of its own, built once. Speed is the float model's time over the
candidate's, in turns in one process, at batch 1: mind what else the machine does, or leave it out with ``--timing 0``.
A tool that fails is a row with the first line of its error.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))

from environments import InstallError, python_of
from reference import Reference, or_error
from samples import OURS, places
from tables import document
from texts import write_json
from work import Limits, Tool, make

from onnxopt.runtime.machine import machine, versions

HERE = Path(__file__).parent
MODELS = ("digits_transformer", "nnsplit_en", "toyadmos_ad01", "silero_vad_v3_piper")
Row = dict[str, Any]


def main() -> None:
    arguments = _arguments()
    setup = tomllib.loads((HERE / "tools.toml").read_text(encoding="utf-8"))
    tools = [Tool(**t) for t in setup["tools"]]
    if arguments.tools:
        tools = [t for t in tools if t.name.partition(",")[0] in arguments.tools.split(",")]
    rows: list[Row] = []
    for name in arguments.only.split(",") if arguments.only else MODELS:
        files = places(name, arguments.models, arguments.samples)
        if missing := [str(f) for f in files if not f.is_file()]:
            print(f"{name}: left out, there is no {missing[0]}", flush=True)
            continue
        for row in compare(files, tools, setup["environments"], arguments):
            print(f"{name}: {row['tool']}: {row.get('error') or format(row['sqnr_db'], '.1f') + ' dB'}", flush=True)
            rows.append(row)
    if arguments.json:
        write_json(arguments.json, {"machine": machine(), "versions": versions(), "rows": rows})
    print(f"\n{document(rows)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, default=OURS)
    parser.add_argument("--samples", type=Path, default=OURS)
    parser.add_argument("--only", help="names of models, joined by commas")
    parser.add_argument("--tools", help="first words of tools of tools.toml, joined by commas")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "onnxopt" / "peers")
    parser.add_argument("--seconds", type=float, default=600, help="a tool's time limit for one model")
    parser.add_argument("--gigabytes", type=float, default=12, help="a tool's memory limit")
    parser.add_argument("--timing", type=float, default=3.0, help="seconds to time each candidate; 0: not timed")
    return parser.parse_args()


def compare(
    files: tuple[Path, Path, Path],
    tools: Sequence[Tool],
    environments: Mapping[str, Sequence[str]],
    arguments: argparse.Namespace,
) -> Iterator[Row]:
    """One row for each tool."""
    model, calibration, test = files
    reference = Reference(model, test)
    limits = Limits(arguments.seconds, int(arguments.gigabytes * 2**30))
    for tool in tools:
        row: Row = {"model": model.stem, "tool": tool.name}
        try:
            python = Path(sys.executable)
            if not tool.ours:
                python = python_of(tool.environment, environments[tool.environment], arguments.environments)
        except InstallError as error:
            yield row | {"error": str(error)}
            continue
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "model.onnx"
            adapter = HERE / "peers" / f"use_{tool.adapter}.py"
            row |= make((python, adapter), tool.options, model, calibration, made, limits)
            if row["ok"]:
                row |= or_error(partial(judge, reference, made, arguments.timing))
        yield row


def judge(reference: Reference, candidate: Path, seconds: float) -> Row:
    """Error, bytes and, unless ``seconds`` is 0, speed of a file, whoever made it."""
    found = {
        "sqnr_db": reference.compare(candidate).sqnr_db,
        "bytes": candidate.stat().st_size,
        "bytes_float": reference.path.stat().st_size,
    }
    return found | (reference.speed(candidate, seconds) if seconds else {})


if __name__ == "__main__":
    main()
