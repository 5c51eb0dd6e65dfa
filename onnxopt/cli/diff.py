"""onnxopt diff"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from onnxopt.cli.options import FILE, data_options, output_options
from onnxopt.cli.output import Output

# Samples that both run on where --samples says nothing: sums settle with few.
_SAMPLES = 16


@click.command(
    short_help="Show how two models differ.",
    epilog="Exit codes: 0 the same graph and weights, 1 they differ, 2 wrong usage or bad input.",
)
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@data_options
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Threads per session.")
@output_options
def diff(
    first: Path,
    second: Path,
    data: str | None,
    preprocess: str | None,
    samples: int | None,
    seed: int,
    dims: tuple[tuple[str, int], ...],
    threads: int,
    report: Path | None,
    quiet: bool,
    verbose: bool,
    log_file: Path | None,
    allow_external_root: Path | None,
) -> int:
    """Show how two models differ: nodes, weights, types, shapes, MACs, and what both compute, layer by layer.

    \b
    onnxopt diff model.onnx model.opt.onnx --data test.npz
    onnxopt diff a.onnx b.onnx --quiet && echo equal
    """
    from onnxopt.check.diff import look
    from onnxopt.graph.io import load
    from onnxopt.job import DataOptions
    from onnxopt.places import check_places
    from onnxopt.report.diff_text import render_difference
    from onnxopt.report.json import write_difference

    source = DataOptions(data=data, preprocess=preprocess, samples=samples or _SAMPLES, seed=seed, dims=dims)
    check_places([first, second], source.files, report=report, log_file=log_file)
    with Output(quiet=quiet, verbose=verbose, log_file=log_file) as out:
        models = load(first, allow_external_root), load(second, allow_external_root)
        found = look(*models, partial(source.open_one, data), threads=threads, track=out.track)
        if report is not None:
            write_difference(found, report)
        out.show(render_difference(found, verbose=verbose))
    return int(not found.same)
