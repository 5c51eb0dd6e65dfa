"""onnxopt validate"""

from __future__ import annotations

from pathlib import Path

import click

from onnxopt.cli.options import FILE, data_options, gate_options, run_options
from onnxopt.cli.output import Output


@click.command(epilog="Exit codes: 0 every gate holds, 1 one fails, 2 wrong usage or bad input.")
@click.argument("reference", type=FILE)
@click.argument("candidate", type=FILE)
@data_options
@gate_options
@run_options
def validate(
    reference: Path,
    candidate: Path,
    data: str | None,
    preprocess: str | None,
    samples: int | None,
    seed: int,
    dims: tuple[tuple[str, int], ...],
    max_drop: float | None,
    min_agreement: float | None,
    min_sqnr: float | None,
    min_speedup: float | None,
    max_size: int | None,
    threads: int,
    batch: int,
    report: Path | None,
    quiet: bool,
    verbose: bool,
    log_file: Path | None,
    allow_external_root: Path | None,
) -> int:
    """Compare CANDIDATE with REFERENCE: accuracy, agreement, speed, size, memory.

    \b
    onnxopt validate model.onnx model.opt.onnx --data test.npz --min-agreement 97%
    """
    from onnxopt.check.gates import Gates
    from onnxopt.job import DataOptions, RunOptions, judge
    from onnxopt.places import check_places
    from onnxopt.report.html import write_report
    from onnxopt.report.text import render

    source = DataOptions(data=data, preprocess=preprocess, samples=samples, seed=seed, dims=dims)
    check_places([reference, candidate], source.files, report=report, log_file=log_file)
    with Output(quiet=quiet, verbose=verbose, log_file=log_file) as out:
        result = judge(
            reference,
            candidate,
            data=source,
            gates=Gates(
                max_drop=max_drop,
                min_agreement=min_agreement,
                min_sqnr=min_sqnr,
                min_speedup=min_speedup,
                max_size=max_size,
            ),
            options=RunOptions(threads=threads, batch=batch, external_root=allow_external_root),
            track=out.track,
        )
        if report is not None:
            write_report(result, report)
        out.show(render(result, verbose=verbose))
    return 1 if result.verdict == "rejected" else 0
