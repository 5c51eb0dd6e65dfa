"""Channels for reading: what was removed and at what price, who is tied to whom, what stays and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from onnxopt.report import words
from onnxopt.report.cut import Cut, Stays, Tied, few
from onnxopt.report.tables import Bar, limited, table

# Points of a curve that a table holds.
_POINTS = 8


def render_cut(found: Cut, spec: str, *, verbose: bool = False) -> Iterator[RenderableType]:
    """What one step removed. ``verbose`` shows every layer, point and group, and those of which nothing went."""
    if found.channels:
        rows = [(k.layer, Bar(k.after / k.before), f"{k.after} of {k.before}") for k in found.channels]
        yield table(f"channels kept by {spec}", ("layer", " ", "channels"), limited(rows, verbose))
    if len(found.curve) > 1:
        yield _curve(found.curve, found.saved, spec, verbose)
    cut = [g for g in found.groups if verbose or (g.kept is not None and g.kept < g.channels)]
    if cut:
        yield _groups(f"channels that go together, of {spec}", cut, verbose, verbose)
    if found.frozen:
        yield _frozen(f"channels that stay, of {spec}", found.frozen, verbose)


def render_coupling(groups: Sequence[Tied], frozen: Sequence[Stays], *, verbose: bool = False) -> list[RenderableType]:
    """The channels of a model before anything is cut: all groups, and what staying costs."""
    if not groups:
        return [Text("no layer of this model makes channels that could go")]
    found: list[RenderableType] = [_groups("Channels that go together", groups, True, verbose)]
    return [*found, _frozen("Channels that stay", frozen, verbose)] if frozen else found


def _groups(title: str, groups: Sequence[Tied], all_of_them: bool, names: bool) -> RenderableType:
    """Columns that have nothing to say are left out."""
    kept, why = any(g.kept is not None for g in groups), any(g.why for g in groups)
    columns = ("made by", "read by ", "channels", "in classes", *["kept"] * kept, *["why they stay "] * why)
    rows = [
        (
            few(g.makers, names),
            few(g.readers, names),
            str(g.channels),
            str(g.classes) if g.classes else "",
            *["" if g.kept is None else str(g.kept)] * kept,
            *[g.why] * why,
        )
        for g in groups
    ]
    return table(title, columns, limited(rows, all_of_them))


def _frozen(title: str, frozen: Sequence[Stays], verbose: bool) -> RenderableType:
    rows = [(f.why, few(f.layers, verbose), words.count(f.parameters)) for f in frozen]
    return table(title, ("why", "layers ", "parameters"), limited(rows, verbose))


def _curve(curve: Sequence[tuple[float, float]], saved: str, spec: str, verbose: bool) -> RenderableType:
    """Some points of it, from the first to the last."""
    places = range(len(curve)) if verbose else np.unique(np.linspace(0, len(curve) - 1, _POINTS).round().astype(int))
    worst = max(error for _, error in curve)
    points = [curve[i] for i in places]
    rows = [(words.share(s), Bar(e / worst if worst > 0 else 0), f"{e:.3g}") for s, e in points]
    return table(f"predicted error by {saved} saved, of {spec}", (f"{saved} saved", " ", "error"), rows)
