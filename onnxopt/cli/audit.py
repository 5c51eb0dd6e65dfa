"""onnxopt audit"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxopt.cli.options import FILE, Share, dim_option, output_options
from onnxopt.cli.output import Output

if TYPE_CHECKING:
    from onnxopt.runtime.islands import Rules


@click.command(
    short_help="Show what runs in integers, what in floats, and why.",
    epilog="Exit codes: 0 good, 1 less than --min-integer, 2 wrong usage or bad input.",
)
@click.argument("model", type=FILE)
@click.option(
    "--rules",
    type=click.Choice(["native", "arm"]),
    default="native",
    show_default=True,
    help="How integer kernels are chosen: as on this machine, or as on ARM.",
)
@click.option("--min-integer", type=Share(), help="Least share of the MACs in integer kernels, such as 90%.")
@click.option("--annotate", type=FILE, metavar="FILE.onnx", help="Write the model with what executes each node.")
@dim_option
@output_options
def audit(
    model: Path,
    rules: Rules,
    min_integer: float | None,
    annotate: Path | None,
    dims: tuple[tuple[str, int], ...],
    report: Path | None,
    quiet: bool,
    verbose: bool,
    log_file: Path | None,
    allow_external_root: Path | None,
) -> int:
    """Show what ONNX Runtime executes of MODEL: which products are integer kernels, which are float, and why.

    \b
    onnxopt audit model.onnx
    onnxopt audit model.onnx --rules arm --min-integer 90% --report audit.json
    """
    from onnxopt.check.audit import annotated, execution, look
    from onnxopt.graph.io import load, save
    from onnxopt.job import DataOptions
    from onnxopt.places import check_places
    from onnxopt.report.json import write_execution
    from onnxopt.report.text import render_execution

    check_places([model], annotated=annotate, report=report, log_file=log_file)
    with Output(quiet=quiet, verbose=verbose, log_file=log_file) as out:
        loaded = load(model, allow_external_root)
        audited = look(loaded, DataOptions(dims=dims).open_one(None, loaded), rules)
        found = execution(loaded, audited, rules)
        if annotate is not None:
            save(annotated(loaded, audited), annotate)
        if report is not None:
            write_execution(found, report)
        out.show(render_execution(found, min_integer=min_integer, verbose=verbose))
    return 1 if min_integer is not None and (found.integer_share or 0.0) < min_integer else 0
