"""Quantize the same models with every tool, on the same samples, and score all with one scorer.

    python benchmarks/quant/run.py --models DIR --data DIR [--only MODEL,...] [--tools TOOL,...] [--json out.json]

DIR of models holds ``NAME.onnx`` for the names of models.toml, DIR of data the photographs and arrays that samples.py
reads. What is made goes to a cache folder and is used again: samples, environments, quantized files of other tools
(onnxopt's own are made anew). ``--score-only`` scores the files that are there, so that speed can be measured again on
a quiet machine. A tool that fails is a row with the first line of its error.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))

from environments import InstallError, python_of
from reference import Reference, or_error
from samples import prepare
from scoring import quality
from tables import document, one_model, summary
from texts import write_json
from work import Limits, Tool, make

from onnxopt.runtime.machine import machine, versions

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "quantization-benchmark.md"
CACHE = Path.home() / ".cache" / "onnxopt"


def main() -> None:
    """All that the command line asks for."""
    arguments = _arguments()
    table = tomllib.loads((HERE / "models.toml").read_text(encoding="utf-8"))
    setup = tomllib.loads((HERE / "tools.toml").read_text(encoding="utf-8"))
    tools = _chosen([Tool(**t) for t in setup["tools"]], arguments.tools)
    names = arguments.only.split(",") if arguments.only else list(table)
    rows: list[dict[str, Any]] = []
    for name in names:
        model = arguments.models / f"{name}.onnx"
        samples = prepare(model, arguments.data, table[name], arguments.cache / "data")
        if arguments.prepare_only:
            print(*samples, sep="\n", flush=True)
            continue
        if not arguments.score_only:
            for tool in tools:
                _make(tool, setup["environments"], model, samples[0], arguments)
        rows += _scored(tools, model, samples[1], arguments)
        print(f"\n{name}\n{one_model([r for r in rows if r['model'] == name])}", flush=True)
        _write(rows, arguments)
    if rows:
        print(f"\n{summary(rows)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", help="names of models.toml, joined by commas")
    parser.add_argument("--tools", help="names of tools.toml, or their first words, joined by commas")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--docs", action="store_true", help=f"write {DOCUMENT.name}")
    parser.add_argument("--cache", type=Path, default=CACHE / "benchmark", help="samples and quantized files")
    parser.add_argument("--environments", type=Path, default=CACHE / "peers", help="virtual environments")
    parser.add_argument("--seconds", type=float, default=900, help="a tool's time limit for one model")
    parser.add_argument("--gigabytes", type=float, default=12, help="a tool's memory limit")
    parser.add_argument("--timing", type=float, default=3.6, help="seconds to time each candidate; 0: not timed")
    parser.add_argument("--again", action="store_true", help="quantize with all tools again")
    parser.add_argument("--prepare-only", action="store_true", help="make the samples, and stop")
    parser.add_argument("--score-only", action="store_true", help="score what was quantized before")
    return parser.parse_args()


def _chosen(tools: Sequence[Tool], names: str | None) -> list[Tool]:
    wanted = names.split(",") if names else None
    chosen = [t for t in tools if wanted is None or t.name in wanted or t.name.split()[0] in wanted]
    if not chosen:
        sys.exit(f"no tool is named {names}; there are: {', '.join(t.name for t in tools)}")
    return chosen


def _places(tool: Tool, model: str, cache: Path) -> tuple[Path, Path]:
    """Where a tool's quantized file is kept, and what it said when it made it."""
    file = cache / "quantized" / model / f"{tool.file_name}.onnx"
    return file, file.with_suffix(".json")


def _make(
    tool: Tool, environments: Mapping[str, Sequence[str]], model: Path, samples: Path, arguments: argparse.Namespace
) -> None:
    """Quantize, unless a peer did before."""
    file, said = _places(tool, model.stem, arguments.cache)
    if said.is_file() and not tool.ours and not arguments.again:
        return
    limits = Limits(arguments.seconds, int(arguments.gigabytes * 2**30))
    try:
        python = Path(sys.executable)
        if not tool.ours:
            python = python_of(tool.environment, environments[tool.environment], arguments.environments)
        adapter = HERE / "peers" / f"use_{tool.adapter}.py"
        answer = make((python, adapter), tool.options, model, samples, file, limits)
    except InstallError as error:
        file.parent.mkdir(parents=True, exist_ok=True)
        answer = {"ok": False, "error": str(error)}
    said.write_text(json.dumps(answer), encoding="utf-8")
    print(f"{model.stem}: {tool.name}: {answer.get('error') or format(answer['seconds'], '.1f') + ' s'}", flush=True)


def _scored(
    tools: Sequence[Tool], model: Path, samples: Path, arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """One row for each tool that was run on the model."""
    reference = Reference(model, samples)
    for tool in tools:
        file, said = _places(tool, model.stem, arguments.cache)
        if not said.is_file():
            continue
        row = {"model": model.stem, "tool": tool.name, "options": dict(tool.options)}
        row |= json.loads(said.read_text(encoding="utf-8"))
        if row["ok"]:
            row |= quality(reference, file)
            if arguments.timing and "sqnr_db" in row:
                row |= or_error(partial(reference.speed, file, arguments.timing))
        yield row


def _write(rows: Sequence[Mapping[str, Any]], arguments: argparse.Namespace) -> None:
    """The results so far."""
    results = {"machine": machine(), "versions": versions(), "rows": rows}
    if arguments.json:
        write_json(arguments.json, results)
    if arguments.docs:
        DOCUMENT.write_text(document(results), encoding="utf-8")


if __name__ == "__main__":
    main()
