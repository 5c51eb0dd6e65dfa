"""onnxopt sensitivity"""

from __future__ import annotations

from pathlib import Path

import click

from onnxopt.cli.options import FILE, data_options, run_options
from onnxopt.cli.output import Output


@click.command(
    short_help="Show which layers lose most by integers.", epilog="Exit codes: 0 good, 2 wrong usage or bad input."
)
@click.argument("model", type=FILE)
@click.option("--test-data", metavar="SOURCE", help="Feeds to judge on.  [default: a quarter of --data, held back]")
@data_options
@run_options
def sensitivity(
    model: Path,
    test_data: str | None,
    data: str | None,
    preprocess: str | None,
    samples: int | None,
    seed: int,
    dims: tuple[tuple[str, int], ...],
    threads: int,
    batch: int,
    report: Path | None,
    quiet: bool,
    verbose: bool,
    log_file: Path | None,
    allow_external_root: Path | None,
) -> None:
    """Show which layers of MODEL lose most by 8-bit integers, and what leaving them float would cost.

    \b
    onnxopt sensitivity model.onnx --data calib.npz
    onnxopt sensitivity model.onnx --data calib.npz --test-data test.npz --report out.json
    """
    from onnxopt.job import DataOptions, RunOptions
    from onnxopt.places import check_places
    from onnxopt.report.json import write_ranking
    from onnxopt.report.survey_text import render_ranking
    from onnxopt.survey import sensitivity as survey

    source = DataOptions(data=data, test_data=test_data, preprocess=preprocess, samples=samples, seed=seed, dims=dims)
    check_places([model], source.files, report=report, log_file=log_file)
    with Output(quiet=quiet, verbose=verbose, log_file=log_file) as out:
        options = RunOptions(threads=threads, batch=batch, external_root=allow_external_root)
        found = survey(model, data=source, options=options, track=out.track)
        if report is not None:
            write_ranking(found, report)
        out.show(render_ranking(found, verbose=verbose))
