"""Remove channels from the same classifiers with every tool, without training, and score all with one scorer.

    python benchmarks/prune/run.py --models DIR --data DIR [--only MODEL,...] [--budgets 20,...] [--tools TOOL,...]

DIR of models holds ``NAME.onnx`` for the names of models.toml, DIR of data the photographs and arrays that
common/samples.py reads. Every tool is asked for the same share of MACs to save; one that knows no such budget gets the
setting that leaves as few more as it can. What is made goes to a cache folder, the results to a file, row by row: run
it again, and it goes on (onnxopt's own rows are made anew). ``--score-only`` scores and times what is there again, as
for speed on a quiet machine. A tool that fails is a row with the first line of its error.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))

from environments import InstallError, python_of
from reference import Reference, or_error
from samples import prepare
from scoring import quality
from tables import document, one_budget
from texts import write_json
from work import Limits, Tool, make

from onnxopt.runtime.machine import machine, versions

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "pruning-benchmark.md"
CACHE = Path.home() / ".cache" / "onnxopt"
_BATCH = 25

Row = dict[str, Any]
Rows = dict[tuple[str, int, str], Row]


def main() -> None:
    """All that the command line asks for."""
    arguments = _arguments()
    table = tomllib.loads((HERE / "models.toml").read_text(encoding="utf-8"))
    setup = tomllib.loads((HERE / "tools.toml").read_text(encoding="utf-8"))
    tools = [Tool(**t) for t in setup["tools"]]
    chosen = _chosen(tools, arguments.tools)
    rows = _read(arguments.json)
    for name in _names(arguments.only, table):
        model = arguments.models / f"{name}.onnx"
        samples, judged = prepare(model, arguments.data, table[name], arguments.cache / "data")
        reference = Reference(model, judged, _BATCH)
        for budget in arguments.budgets:
            for tool in chosen:
                before = rows.get((name, budget, tool.name))
                row = _row(tool, setup["environments"], model, samples, budget, before, arguments)
                if row is None:
                    continue
                row |= _scored(row, _place(tool, name, budget, arguments.cache), reference, arguments)
                rows[name, budget, tool.name] = row
                _write(_in_order(rows, table, tools), arguments)
                print(_line(row), flush=True)
    in_order = _in_order(rows, table, tools)
    _write(in_order, arguments)
    for budget in arguments.budgets:
        print(f"\n{budget} % fewer MACs\n{one_budget([r for r in in_order if r['budget'] == budget])}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", help="names of models.toml, joined by commas")
    parser.add_argument("--budgets", type=_percents, default=[20, 30, 50], help="percent of MACs to save: 20,30,50")
    parser.add_argument("--tools", help="names of tools.toml, or their first words, joined by commas")
    parser.add_argument("--cache", type=Path, default=CACHE / "prune", help="samples and pruned files")
    parser.add_argument("--json", type=Path, help="the results; prune.json in the cache if not given")
    parser.add_argument("--docs", action="store_true", help=f"write {DOCUMENT.name}")
    parser.add_argument("--environments", type=Path, default=CACHE / "peers", help="virtual environments")
    parser.add_argument("--seconds", type=float, default=900, help="a tool's time limit for one model and budget")
    parser.add_argument("--gigabytes", type=float, default=12, help="a tool's memory limit")
    parser.add_argument("--timing", type=float, default=3.6, help="seconds to time each candidate; 0: not timed")
    parser.add_argument("--again", action="store_true", help="prune with all tools again")
    parser.add_argument("--score-only", action="store_true", help="score what was pruned before")
    arguments = parser.parse_args()
    arguments.json = arguments.json or arguments.cache / "prune.json"
    return arguments


def _percents(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(only: str | None, table: dict[str, Any]) -> list[str]:
    names = only.split(",") if only else list(table)
    if unknown := [name for name in names if name not in table]:
        sys.exit(f"no model is named {unknown[0]}; there are: {', '.join(table)}")
    return names


def _chosen(tools: Sequence[Tool], names: str | None) -> list[Tool]:
    wanted = names.split(",") if names is not None else None
    chosen = [t for t in tools if wanted is None or t.name in wanted or t.name.split()[0] in wanted]
    if not chosen and names:
        sys.exit(f"no tool is named {names}; there are: {', '.join(t.name for t in tools)}")
    return chosen


def _place(tool: Tool, model: str, budget: int, cache: Path) -> Path:
    return cache / "pruned" / model / str(budget) / f"{tool.file_name}.onnx"


def _row(
    tool: Tool,
    environments: dict[str, list[str]],
    model: Path,
    samples: Path,
    budget: int,
    before: Row | None,
    arguments: argparse.Namespace,
) -> Row | None:
    """What is to be scored: a file made now, or one of before; None where nothing is left to do."""
    if arguments.score_only:
        stale = ("error", "speed", "speed_low", "speed_high")
        return {k: v for k, v in before.items() if k not in stale} if before and before["ok"] else None
    if before and not tool.ours and not arguments.again:
        timed = "speed" in before or not arguments.timing or "accuracy" not in before
        return None if timed else before
    row = {"model": model.stem, "budget": budget, "tool": tool.name}
    limits = Limits(arguments.seconds, int(arguments.gigabytes * 2**30))
    try:
        python = Path(sys.executable)
        if not tool.ours:
            python = python_of(tool.environment, environments[tool.environment], arguments.environments)
    except InstallError as error:
        return row | {"ok": False, "error": str(error)}
    command = (python, HERE / "peers" / f"use_{tool.adapter}.py")
    options = {**tool.options, "budget": budget / 100}
    return row | make(command, options, model, samples, _place(tool, model.stem, budget, arguments.cache), limits)


def _scored(row: Row, file: Path, reference: Reference, arguments: argparse.Namespace) -> Row:
    """The figures that the row lacks."""
    figures: Row = {}
    if row["ok"] and ("accuracy" not in row or arguments.score_only):
        figures |= quality(reference, file)
    if arguments.timing and "accuracy" in row | figures and "error" not in figures:
        figures |= or_error(partial(reference.speed, file, arguments.timing))
    return figures


def _line(row: Row) -> str:
    parts = [row["model"], f"-{row['budget']} %", row["tool"]]
    if "accuracy" in row:
        parts += [f"{row['accuracy_float']:.3f} -> {row['accuracy']:.3f}", f"MACs {row['macs_share']:.3f}"]
        parts += [f"{row['speed']:.2f} x"] if "speed" in row else []
    return ", ".join([*parts, *([row["error"]] if "error" in row else [])])


def _read(path: Path) -> Rows:
    if not path.is_file():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {(r["model"], r["budget"], r["tool"]): r for r in rows}


def _in_order(rows: Rows, models: dict[str, Any], tools: Sequence[Tool]) -> list[Row]:
    """By budget, model and tool, in the order of their files; rows of tools that are there no more are left out."""
    names = [t.name for t in tools]
    budgets = sorted({budget for _, budget, _ in rows})
    return [rows[m, b, t] for b in budgets for m in models for t in names if (m, b, t) in rows]


def _write(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    """The results so far."""
    results = {"machine": machine(), "versions": versions(), "rows": rows}
    write_json(arguments.json, results)
    if arguments.docs:
        DOCUMENT.write_text(document(results), encoding="utf-8")


if __name__ == "__main__":
    main()
