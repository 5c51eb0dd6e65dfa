"""onnxopt inspect"""

from __future__ import annotations

from pathlib import Path

import click

from onnxopt.cli.options import FILE, data_options, output_options, target_option
from onnxopt.cli.output import Output
from onnxopt.runtime.target import Target


@click.command(short_help="Show what a model is made of, and what passes could do.")
@click.argument("model", type=FILE)
@click.option("--coupling", is_flag=True, help="Show which channels go together, and what holds others; try no pass.")
@click.option("--advise", is_flag=True, help="Try every lossy pass on every layer, and show what pays.")
@target_option
@data_options
@output_options
def inspect(
    model: Path,
    coupling: bool,
    advise: bool,
    processor: Target,
    data: str | None,
    preprocess: str | None,
    samples: int | None,
    seed: int,
    dims: tuple[tuple[str, int], ...],
    report: Path | None,
    quiet: bool,
    verbose: bool,
    log_file: Path | None,
    allow_external_root: Path | None,
) -> None:
    """Show what MODEL is made of, and what each pass could do to it, or why not.

    \b
    onnxopt inspect model.onnx
    onnxopt inspect model.onnx --data calib.npz --verbose
    onnxopt inspect model.onnx --coupling
    onnxopt inspect model.onnx --advise --data calib.npz
    """
    if coupling and advise:
        raise click.UsageError("--coupling and --advise look at different things; give one")
    from onnxopt.check.advise import advise as try_all
    from onnxopt.check.inspect import inspect as look
    from onnxopt.graph.io import load
    from onnxopt.job import DataOptions
    from onnxopt.places import check_places
    from onnxopt.report.advice_text import render_advice
    from onnxopt.report.json import write_advice, write_inspection
    from onnxopt.report.text import render_inspection

    source = DataOptions(data=data, preprocess=preprocess, samples=samples, seed=seed, dims=dims)
    check_places([model], source.files, report=report, log_file=log_file)
    with Output(quiet=quiet, verbose=verbose, log_file=log_file) as out:
        loaded = load(model, allow_external_root)
        if advise:
            calibration, test = source.open(loaded)
            advice = try_all(loaded, calibration, test, target=processor, seed=seed, track=out.track)
            if report is not None:
                write_advice(advice, report)
            out.show(render_advice(advice, verbose=verbose))
            return
        found = look(loaded, source.open_one(data, loaded), coupling=coupling, track=out.track)
        if report is not None:
            write_inspection(found, report)
        out.show(render_inspection(found, verbose=verbose))
