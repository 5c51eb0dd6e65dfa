"""onnxopt optimize"""

from __future__ import annotations

from pathlib import Path

import click

from onnxopt.cli.options import FILE, data_options, gate_options, run_options, target_option
from onnxopt.cli.output import Output
from onnxopt.runtime.target import Target


@click.command(
    short_help="Apply passes to a model, and save what holds.",
    epilog="Exit codes: 0 saved, 1 a gate failed and nothing was saved, 2 wrong usage or bad input.",
)
@click.argument("model", type=FILE)
@click.option(
    "--passes", "-p", "spec", metavar="SPEC", help="Such as prune:ratio=0.3,quant (onnxopt passes lists them)."
)
@click.option("--recipe", type=FILE, metavar="FILE.toml", help="Passes from a file instead.")
@click.option("--output", "-o", type=FILE, help="Where to save.  [default: MODEL.opt.onnx beside the input]")
@click.option("--in-place", is_flag=True, help="Replace the input.")
@click.option("--test-data", metavar="SOURCE", help="Feeds to judge on.  [default: a quarter of --data, held back]")
@data_options
@gate_options
@target_option
@click.option("--dry-run", is_flag=True, help="Say what would be done, and why not more; run and write nothing.")
@click.option("--force", is_flag=True, help="Save even if a gate fails.")
@click.option("--no-validate", is_flag=True, help="Do not compare with the original; the report says so.")
@click.option("--keep-order", is_flag=True, help="Run the passes in the order given.")
@click.option("--stop-after", type=click.IntRange(1), metavar="N", help="Stop after N steps; added ones count.")
@click.option("--check-each", is_flag=True, help="Compare the model before and after each pass.")
@click.option("--cache", type=FILE, metavar="DIR", help="Keep calibration there; an interrupted run continues.")
@run_options
def optimize(
    model: Path,
    spec: str | None,
    recipe: Path | None,
    output: Path | None,
    in_place: bool,
    test_data: str | None,
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
    processor: Target,
    dry_run: bool,
    force: bool,
    no_validate: bool,
    keep_order: bool,
    stop_after: int | None,
    check_each: bool,
    cache: Path | None,
    threads: int,
    batch: int,
    report: Path | None,
    quiet: bool,
    verbose: bool,
    log_file: Path | None,
    allow_external_root: Path | None,
) -> int:
    """Apply passes to MODEL, compare the result with it, and save what holds.

    \b
    onnxopt optimize model.onnx --passes quant --data calib.npz
    onnxopt optimize model.onnx --passes prune:ratio=0.3,quant --data photos/ --preprocess imagenet
    onnxopt optimize model.onnx --passes quant --data calib.npz --dry-run
    onnxopt optimize model.onnx --recipe recipe.toml --max-drop 1% --min-speedup 1.5 -o edge.onnx
    """
    from onnxopt.check.gates import Gates
    from onnxopt.core.spec import parse, read_recipe
    from onnxopt.job import DataOptions, RunOptions, default_output
    from onnxopt.job import optimize as run
    from onnxopt.places import check_places
    from onnxopt.report.html import write_report
    from onnxopt.report.json import write_dry_run
    from onnxopt.report.survey_text import render_dry_run
    from onnxopt.report.text import render
    from onnxopt.survey import dry_run as look_ahead

    if (spec is None) == (recipe is None):
        raise click.UsageError("name the passes with --passes or --recipe (onnxopt passes lists them)")
    passes = parse(spec) if spec is not None else read_recipe(recipe or "")
    target = output or (model if in_place else default_output(model))
    source = DataOptions(data=data, test_data=test_data, preprocess=preprocess, samples=samples, seed=seed, dims=dims)
    check_places([model], [*source.files, recipe], output=target, in_place=in_place, report=report, log_file=log_file)
    options = RunOptions(
        keep_order=keep_order,
        stop_after=stop_after,
        check_each=check_each,
        validate=not no_validate,
        force=force,
        in_place=in_place,
        threads=threads,
        batch=batch,
        target=processor,
        cache=cache,
        external_root=allow_external_root,
        by_layer=report is not None,
    )
    with Output(quiet=quiet, verbose=verbose, log_file=log_file) as out:
        if dry_run:
            found = look_ahead(model, passes, data=source, options=options, track=out.track)
            if report is not None:
                write_dry_run(found, report)
            out.show(render_dry_run(found, verbose=verbose))
            return int(any(outlook.refusal for outlook in found.passes))
        result = run(
            model,
            target,
            passes,
            data=source,
            gates=Gates(
                max_drop=max_drop,
                min_agreement=min_agreement,
                min_sqnr=min_sqnr,
                min_speedup=min_speedup,
                max_size=max_size,
            ),
            options=options,
            track=out.track,
        )
        if report is not None:
            write_report(result, report)
        out.show(render(result, verbose=verbose))
    return 1 if result.verdict == "rejected" else 0
