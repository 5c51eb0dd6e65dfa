"""onnxopt targets"""

from __future__ import annotations

from pathlib import Path

import click

from onnxopt.cli.options import FILE
from onnxopt.cli.targets_setup import setup


@click.group(short_help="Show and set up the processors that models are validated on.")
def targets() -> None:
    """The processors that a model can be validated on from this machine.

    \b
    onnxopt targets list
    onnxopt targets setup arm64
    """


targets.add_command(setup)


@targets.command("list", short_help="List every target, and whether it can run here.")
@click.option("--report", type=FILE, metavar="FILE", help="Write the list as JSON.")
def list_(report: Path | None) -> None:
    """List every target: whether it can run here, and how; if not, why not and what to do.

    \b
    onnxopt targets list
    onnxopt targets list --report targets.json
    """
    import json
    from dataclasses import asdict

    from onnxopt.cli.output import console
    from onnxopt.places import check_places
    from onnxopt.report.files import write_text
    from onnxopt.report.tables import table
    from onnxopt.targets.overview import groups, overview
    from onnxopt.targets.spec import PROVIDERS

    check_places([], report=report)
    lines = overview()
    if report is not None:
        rows = [{**asdict(line), "available": line.available} for line in lines]
        found = {"schema": "onnxopt-targets-1", "targets": rows, "groups": groups()}
        write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", report)
    here = [(x.name, ", ".join(filter(None, (*x.aliases, x.device))), x.how) for x in lines if x.available]
    out = console()
    out.print(table("", ("target", "also ", "runs here "), here))
    missing = [(x.name, x.why, x.remedy) for x in lines if not x.available]
    if missing:
        out.print(table("Not available here", ("target", "why ", "what to do "), missing))
    out.print(table("Groups", ("group", "stands for "), [(name, ", ".join(of)) for name, of in groups().items()]))
    providers = ", ".join(f"+{name}" for name in sorted(PROVIDERS))
    out.print(f"Another execution provider, if the installed ONNX Runtime has it: native with {providers}")
    out.print("A real device: ssh://user@host:port?python=python3&threads=4", markup=False)
