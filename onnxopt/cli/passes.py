"""onnxopt passes"""

from __future__ import annotations

import click


@click.command()
@click.argument("names", nargs=-1)
def passes(names: tuple[str, ...]) -> None:
    """List the passes, or only NAMES, with every option, its type, its default and what it means.

    \b
    onnxopt passes
    onnxopt passes quant prune
    """
    from rich.console import Console

    from onnxopt.core.spec import known_passes, nearest
    from onnxopt.errors import SpecError
    from onnxopt.report.text import render_passes

    known = known_passes()
    for name in names:
        if name not in known:
            raise SpecError(f"there is no pass '{name}'{nearest(name, known)}")
    Console(highlight=False).print(render_passes({n: t for n, t in known.items() if not names or n in names}))
