"""What goes into layers before anything is changed, as second moments: to choose ranks by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from onnxopt.core import unrolled
from onnxopt.core.context import Context
from onnxopt.core.stream import modest_batch
from onnxopt.factoring.site import Site
from onnxopt.graph.layer import Floats
from onnxopt.graph.model import Model
from onnxopt.numerics.packing import packed
from onnxopt.numerics.patches import sample_positions

# Second moments together stay in this much memory.
_BYTES = 2**28
# What varies by less of the power of a tensor does not vary.
_TINY = 1e-9


def gathered(
    model: Model, sites: Sequence[Site], context: Context, samples: int, level: float
) -> Iterator[tuple[Site, Floats | None]]:
    """Each layer with E[x x^T] of what goes into it, (inputs x kernel) squared, of trace 1, about the mean where a bias
    can make good for that; of tables how often each row is looked up, (rows,). None where nothing can be told: in
    bodies, of the widest, without samples. ``level`` of the power is spread over all inputs: samples are few, and what
    they do not show may still come."""
    for part in packed(sites, _needs, _BYTES):
        found = _moments(model, part, context, samples, level) if samples else {}
        for site in part:
            yield site, found.get(site)


def weighted(site: Site, moment: Floats | None) -> tuple[Floats, Floats | None]:
    """The weights, and the second moments of what they are multiplied with; a table's rows by how often they are."""
    weight = site.matrix()
    if moment is not None and site.is_table:
        return weight * np.sqrt(moment), None
    return weight, moment


def _needs(site: Site) -> int:
    """Bytes of its second moments."""
    return 8 * site.width**2 if site.width <= unrolled.WIDEST and not site.is_table else 0


def _moments(model: Model, sites: Sequence[Site], context: Context, samples: int, level: float) -> dict[Site, Floats]:
    watched = [s for s in sites if s.graph is model.graph and (s.is_table or s.width <= unrolled.WIDEST)]
    if not watched:
        return {}
    sums = {s: np.zeros(s.sizes[1] if s.is_table else (s.width, s.width)) for s in watched}
    means = {s: np.zeros(s.width) for s in watched if s.solvable and s.has_bias(model)}
    count = dict.fromkeys(means, 0)
    names = list(dict.fromkeys(s.x.name for s in watched))
    batch = modest_batch(context, context.shapes(model))
    parts = -(-min(samples, context.dataset.count) // batch)
    for values in context.activations(model, names, samples, batch):
        for site, total in sums.items():
            x = values[site.x.name]
            if site.is_table:
                total += np.bincount(np.asarray(x, np.intp).ravel() % len(total), minlength=len(total))
            else:
                rows = _rows(site, x, parts, context.rng())
                total += rows.T @ rows
                if site in means:
                    means[site] += rows.sum(axis=0)
                    count[site] += len(rows)
    found = {}
    for site, total in sums.items():
        varies = total - np.outer(means[site], means[site]) / max(count[site], 1) if site in means else total
        if _power(varies) > _TINY * _power(total):
            found[site] = _levelled(varies, level)
    return found


def _rows(site: Site, x: np.ndarray, parts: int, rng: np.random.Generator) -> Floats:
    rows = unrolled.Rows(site.node, site.read(x))
    at = sample_positions(rows.count, max(1, unrolled.enough(site.width) // parts), rng)
    chosen = rows.at(at).astype(np.float64)
    return np.asarray(chosen[np.isfinite(chosen).all(axis=1)])


def _power(total: Floats) -> float:
    return float(total.sum() if total.ndim == 1 else np.trace(total))


def _levelled(moment: Floats, level: float) -> Floats:
    """Of trace 1, a bit of it in every direction."""
    size = len(moment)
    if moment.ndim == 1:
        return np.asarray((moment / moment.sum() + level / size) / (1 + level))
    return np.asarray((moment / np.trace(moment) + level / size * np.eye(size)) / (1 + level))
