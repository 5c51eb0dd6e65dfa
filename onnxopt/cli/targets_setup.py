"""onnxopt targets setup"""

from __future__ import annotations

from pathlib import Path

import click

from onnxopt.cli.options import FILE


@click.command()
@click.argument("name", metavar="arm64|ort-VERSION")
@click.option("--mirror", metavar="URL", help="A Debian mirror; default: the one that this system uses.")
@click.option("--keep", type=FILE, metavar="DIR", help="Keep all that is fetched, to carry it to another machine.")
@click.option("--offline", type=FILE, metavar="DIR", help="Open no connection: take what --keep left in this folder.")
@click.option("--dry-run", is_flag=True, help="Say what would be fetched, and fetch nothing.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
def setup(
    name: str, mirror: str | None, keep: Path | None, offline: Path | None, *, dry_run: bool, quiet: bool
) -> None:
    """Make ready what some targets need, once, into the cache folder. Needs no root and installs nothing.

    arm64: QEMU, and Python with ONNX Runtime for ARM; about 117 MB are fetched. ort-1.16: that version of ONNX Runtime
    for this processor. What is there already and fits is left alone.

    \b
    onnxopt targets setup arm64
    onnxopt targets setup arm64 --keep files
    onnxopt targets setup arm64 --offline files
    onnxopt targets setup ort-1.16
    """
    from onnxopt.cli.output import Output
    from onnxopt.environments.setup import plan, set_up
    from onnxopt.environments.source import Source
    from onnxopt.errors import SpecError

    if offline is not None and (keep is not None or mirror is not None):
        raise SpecError("--offline opens no connection: leave --keep and --mirror away")
    if offline is not None and not offline.is_dir():
        raise SpecError(f"{offline} is no folder: fill one by --keep on a machine with a connection")
    source = Source(mirror=mirror, keep=keep, offline=offline)
    with Output(quiet=quiet) as output:
        if dry_run:
            output.say("\n".join(plan(name, source)))
        else:
            output.say(set_up(name, source, output.say, output.track))
