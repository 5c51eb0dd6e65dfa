"""onnxopt passes"""

from __future__ import annotations

import click


@click.command(short_help="List the passes and their options.")
@click.argument("names", nargs=-1)
def passes(names: tuple[str, ...]) -> None:
    """List the passes, or only NAMES, with every option, its type, its default and what it means.

    \b
    onnxopt passes
    onnxopt passes quant prune
    """
    from onnxopt.cli.output import console
    from onnxopt.core.spec import known_passes, options
    from onnxopt.errors import SpecError
    from onnxopt.report.text import PassLine, render_passes
    from onnxopt.spelling import nearest

    known = known_passes()
    for name in names:
        if name not in known:
            raise SpecError(f"there is no pass '{name}'{nearest(name, known)}")
    chosen = [known[name] for name in known if not names or name in names]
    lines = [PassLine(t.name, (t.__doc__ or "").partition("\n")[0], t.exact, options(t)) for t in chosen]
    console().print(render_passes(lines))
