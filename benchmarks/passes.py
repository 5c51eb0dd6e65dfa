"""What passes make of models: the tables of the docs, or passes and models that are named here.

    python benchmarks/passes.py TABLE [--models DIR --data DIR] [--only MODEL,...]
    python benchmarks/passes.py --passes 'SPEC;SPEC' [--models DIR --data DIR] [--only MODEL,...]

TABLE is one of passes.toml. The sample models are always there; DIR of models holds ``NAME.onnx`` for other names, DIR
of data ``NAME.calib.npz`` and ``NAME.eval.npz``, as ``benchmarks/quant/run.py --prepare-only`` makes them (in ``data``
of its cache). The first calibrates, all of the second judges. The smallest models come first.

Bytes are those of the file, compressed those that zstd makes of it; parameters, MACs and bytes are shares of the
original's. SQNR is that of the worst output. Speed is a ratio, and where it surely lies: both models run in turn in one
process, batch 1, one thread; it is measured only where it is a column. What fails is a row with its error.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent / "common"))

from reference import Reference, or_error
from samples import OURS, places
from texts import percent, table

from onnxopt import DataOptions, Report, RunOptions, load, optimize
from onnxopt.check.quality import Quality
from onnxopt.core.spec import parse
from onnxopt.graph.compressed import compressed_bytes
from onnxopt.report.report import FileInfo

SAMPLES = ("digits_mlp", "digits_resnet", "digits_transformer")
Files = tuple[Path, Path, Path]
_BATCH = 32
_TIMING_S = 3.6


def main() -> None:
    """Every row of a table, as soon as it is there."""
    arguments = _arguments()
    if arguments.passes:
        models = SAMPLES if arguments.models == OURS else [f.stem for f in arguments.models.glob("*.onnx")]
        chosen: Mapping[str, Any] = {"rows": [{"models": models, "passes": arguments.passes.split(";")}]}
    else:
        chosen = tables()[arguments.table]
    columns, before = chosen.get("columns", list(COLUMNS)), ""
    print(table(["model", "passes", *(HEADS.get(name, name) for name in columns)], ()))
    for model, spec in pairs(chosen["rows"], arguments):
        files = places(model, arguments.models, arguments.data)
        print(_line([model if model != before else "", f"`{spec}`", *cells(files, spec, columns)]), flush=True)
        before = model


def tables() -> dict[str, Any]:
    """Columns and rows by name."""
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("table", nargs="?", choices=list(tables()))
    what.add_argument("--passes", help="what to run instead, joined by semicolons")
    parser.add_argument("--models", type=Path, default=OURS)
    parser.add_argument("--data", type=Path, default=OURS)
    parser.add_argument("--only", help="names of models, joined by commas")
    return parser.parse_args()


def pairs(groups: Iterable[Mapping[str, Any]], arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Models and specs; the smallest models of each group first, those without files left out."""
    only = arguments.only.split(",") if arguments.only else None
    for group in groups:
        there = []
        for name in [m for m in group["models"] if only is None or m in only]:
            files = places(name, arguments.models, arguments.data)
            if missing := [str(f) for f in files if not f.is_file()]:
                print(f"{name}: left out, there is no {missing[0]}", file=sys.stderr)
            else:
                there.append((files[0].stat().st_size, name))
        yield from ((name, spec) for _, name in sorted(there) for spec in group["passes"])


def cells(files: Files, spec: str, columns: Sequence[str]) -> list[str]:
    """One run, column by column; one that fails says why in the first."""
    found = or_error(lambda: _run(files, spec, columns))
    if "error" in found:
        return [f"fails: {found['error']}".replace("|", "/"), *[""] * (len(columns) - 1)]
    return [found[name] for name in columns]


def _run(files: Files, spec: str, columns: Sequence[str]) -> dict[str, str]:
    model, calibration, test = files
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "out.onnx"
        data = DataOptions(data=calibration, test_data=test)
        report = optimize(model, made, parse(spec), data=data, options=RunOptions(validate=False))
        reference = _reference(model, test)
        found = Found(report, reference.compare(made), reference, made)
        return {name: COLUMNS[name](found) if name in COLUMNS else figure(report, name) for name in columns}


@lru_cache(maxsize=1)
def _reference(model: Path, test: Path) -> Reference:
    """Its answers serve every row of the model."""
    return Reference(model, test, _BATCH)


@dataclass(frozen=True)
class Found:
    """What there is to tell of one run."""

    report: Report
    quality: Quality
    reference: Reference
    made: Path


def _share(found: Found, of: Callable[[FileInfo], int | None]) -> str:
    """What is left of the original's, or nothing where it had none."""
    before, after = (of(file) if file else None for file in (found.report.input, found.report.output))
    return percent(after / before) if before and after is not None else ""


def _decibels(found: Found) -> str:
    value = found.quality.sqnr_db
    return "unchanged" if value == float("inf") else f"{value:.1f}"


def _points(found: Found) -> str:
    after, before = found.quality.accuracy, found.quality.accuracy_reference
    return "" if after is None or before is None else f"{100 * (after - before):+.2f}"


def _speed(found: Found) -> str:
    ratio = found.reference.speed(found.made, _TIMING_S)
    return f"{ratio['speed']:.2f} ({ratio['speed_low']:.2f}-{ratio['speed_high']:.2f})"


def _notes(found: Found) -> str:
    """Why nothing was done, where that is so."""
    last = found.report.passes[-1]
    return "" if last.changed or not last.skips else f"left alone: {last.skips[0][1]}"


def figure(report: Report, name: str) -> str:
    """A figure of the last pass that has it; one of several parts as 'number part'."""
    found = [step.figures[name] for step in report.passes if name in step.figures]
    if found and isinstance(found[-1], Mapping):
        return ", ".join(f"{value} {part}" for part, value in found[-1].items())
    return str(found[-1]) if found else ""


COLUMNS: Mapping[str, Callable[[Found], str]] = {
    "bytes": partial(_share, of=attrgetter("bytes")),
    "compressed": partial(_share, of=lambda file: compressed_bytes(load(file.path))),
    "parameters": partial(_share, of=attrgetter("parameters")),
    "macs": partial(_share, of=attrgetter("macs")),
    "sqnr": _decibels,
    "accuracy": _points,
    "speed": _speed,
    "seconds": lambda found: f"{sum(step.seconds for step in found.report.passes):.1f}",
    "notes": _notes,
}
HEADS = {"macs": "MACs", "sqnr": "SQNR, dB", "accuracy": "accuracy, points"}


def _line(found: Sequence[str]) -> str:
    return "| " + " | ".join(found) + " |"


if __name__ == "__main__":
    main()
