"""onnxopt check"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxopt.cli.options import FILE, data_options
from onnxopt.cli.output import Output

if TYPE_CHECKING:
    from onnxopt.deploy.policy import Policy


@click.command(
    short_help="Check models before they ship.",
    epilog="Exit codes: 0 nothing failed, 1 a check failed, 2 wrong usage or policy, 4 a required target is missing.",
)
@click.argument("models", metavar="MODEL...", type=FILE, nargs=-1, required=True)
@click.option("--policy", "policy_file", type=FILE, metavar="FILE.toml", help="What the model must hold to.")
@click.option("--reference", type=FILE, metavar="FLOAT.onnx", help="The float model that answers are held against.")
@click.option("--accepted", type=FILE, metavar="REPORT.json", help="The report that accepted this very file.")
@click.option("--ort", metavar="VERSION", help="The release of ONNX Runtime on the device, such as 1.16.")
@click.option("--provider", "providers", multiple=True, metavar="NAME", help="Must run every node: cpu, xnnpack, ...")
@click.option("--target", "run_on", metavar="LIST", help="Processors to run on, such as x86,arm64,ssh://pi@kitchen.")
@click.option(
    "--require-target", "require", metavar="LIST", help="Processors that must be available, or it is an error."
)
@click.option("--only", metavar="NAMES", help="These checks and no others, with commas between.")
@click.option("--skip", metavar="NAMES", help="All checks but these.")
@click.option("--strict", is_flag=True, help="A check that could not be run fails the model.")
@data_options
@click.option(
    "--report",
    "reports",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="Write .json, .xml (JUnit), .sarif or .md (Markdown); may be given several times.",
)
@click.option("--quiet", "-q", is_flag=True, help="No output but errors; the exit code tells.")
@click.option("--verbose", "-v", is_flag=True, help="Every place by name.")
@click.option("--log-file", type=FILE, help="Write progress and result there too.")
def check(
    models: tuple[Path, ...],
    policy_file: Path | None,
    reference: Path | None,
    accepted: Path | None,
    ort: str | None,
    providers: tuple[str, ...],
    run_on: str | None,
    require: str | None,
    only: str | None,
    skip: str | None,
    strict: bool,
    data: str | None,
    preprocess: str | None,
    samples: int | None,
    seed: int,
    dims: tuple[tuple[str, int], ...],
    reports: tuple[Path, ...],
    quiet: bool,
    verbose: bool,
    log_file: Path | None,
) -> int:
    """Check each MODEL, made by any tool, before it ships. Options override the policy.

    \b
    onnxopt check model.onnx
    onnxopt check model.onnx --policy edge.toml --report check.sarif --report check.md
    onnxopt check model.int8.onnx --reference model.onnx --data test.npz --target x86,arm64
    onnxopt check model.onnx --ort 1.16 --only structure,opset,operators
    """
    from onnxopt.deploy.policy import Policy, read_policy
    from onnxopt.deploy.run import check as run
    from onnxopt.deploy.subject import Subject
    from onnxopt.deploy.targets import unmet
    from onnxopt.deploy.text import render
    from onnxopt.deploy.write import write_check
    from onnxopt.errors import SpecError, TargetError

    policy = read_policy(policy_file) if policy_file is not None else Policy()
    given: dict[str, dict[str, Any]] = {
        "checks": {"only": _names(only), "skip": _names(skip), "not-run": "fail" if strict else None},
        "opset": {"ort": ort},
        "operators": {"providers": list(providers) or None},
        "targets": {"run": run_on, "require": require},
        "provenance": {"accepted": _text(accepted)},
        "accuracy": {"reference": _text(reference), "preprocess": preprocess, "samples": samples},
    }
    tables = {name: {k: v for k, v in table.items() if v is not None} for name, table in given.items()}
    policy = policy.with_tables(tables, Path())
    # Code to make samples with may be named here, but not in a file.
    policy = replace(policy, accuracy=replace(policy.accuracy, data=data or policy.accuracy.data))
    if reports and len(models) > 1:
        raise SpecError("a report is about one model: name one, or leave --report away")
    for model in models:
        _check_places(model, policy_file, policy, reports, log_file)
    failed, missing = False, None
    with Output(quiet=quiet, verbose=verbose, log_file=log_file) as out:
        for model in models:
            subject = Subject(
                model,
                data=policy.accuracy.data,
                preprocess=policy.accuracy.preprocess,
                samples=policy.accuracy.samples,
                seed=seed,
                dims=dict(dims),
                track=out.track,
            )
            found = run(subject, policy)
            for report in reports:
                write_check(found, report)
            out.show(render(found, verbose=verbose))
            failed |= found.verdict == "failed"
            missing = missing or unmet(found, policy)
    if missing is not None:
        raise TargetError(f"a target is required, but was not checked: {missing.why}")
    return int(failed)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _check_places(
    model: Path, policy_file: Path | None, policy: Policy, reports: tuple[Path, ...], log_file: Path | None
) -> None:
    """Refuse reports of no known kind, over what is read, or over each other. The model may be broken."""
    from onnxopt.deploy.subject import Subject
    from onnxopt.deploy.write import check_kind
    from onnxopt.places import check_places

    read: list[Path | str | None] = [model, policy_file, policy.accuracy.data, policy.accuracy.reference]
    read += [policy.provenance.accepted]
    if model.is_file():
        read += Subject(model).files
    for i, report in enumerate(reports):
        check_kind(report)
        check_places([], [*read, *reports[:i]], report=report, log_file=log_file)
    check_places([], [*read, *reports], log_file=log_file)
