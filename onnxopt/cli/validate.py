"""onnxopt validate"""

from __future__ import annotations

from pathlib import Path

import click

from onnxopt.cli.options import FILE, data_options, gate_options, run_options, target_options
from onnxopt.cli.output import Output
from onnxopt.errors import TargetError
from onnxopt.targets.spec import Wanted


@click.command(
    short_help="Compare two models: answers, speed, size.",
    epilog="Exit codes: 0 every gate holds, 1 one fails, 2 wrong usage or bad input, 4 a required target is missing.",
)
@click.argument("reference", type=FILE)
@click.argument("candidate", type=FILE)
@data_options
@gate_options
@target_options
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
    targets: tuple[tuple[Wanted, ...], ...],
    required: tuple[tuple[Wanted, ...], ...],
    threads: int,
    batch: int,
    report: Path | None,
    quiet: bool,
    verbose: bool,
    log_file: Path | None,
    allow_external_root: Path | None,
) -> int:
    """Compare CANDIDATE with REFERENCE: accuracy, agreement, speed, size, memory, here and on other processors.

    \b
    onnxopt validate model.onnx model.opt.onnx --data test.npz --min-agreement 97%
    onnxopt validate model.onnx model.opt.onnx --data test.npz --target x86,arm64
    """
    from dataclasses import replace
    from itertools import chain

    from onnxopt.check.gates import Gates
    from onnxopt.check.targets import default_targets, left_out
    from onnxopt.job import DataOptions, RunOptions, judge
    from onnxopt.places import check_places
    from onnxopt.report.html import write_report
    from onnxopt.report.text import render
    from onnxopt.targets.find import require

    needed = tuple(chain(*required))
    require(needed)
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
            options=RunOptions(
                threads=threads, batch=batch, external_root=allow_external_root, by_layer=report is not None
            ),
            targets=tuple(chain(*targets)) if targets else default_targets(),
            required=needed,
            track=out.track,
        )
        if not targets:
            result = replace(result, notes=(*result.notes, *left_out()))
        if report is not None:
            write_report(result, report)
        out.show(render(result, verbose=verbose))
    names = {w.name for w in needed}
    for target in result.targets:
        if target.target in names and target.status == "not checked":
            raise TargetError(f"the target '{target.target}' is required, but was not checked: {target.why}")
    return 1 if result.verdict == "rejected" else 0
