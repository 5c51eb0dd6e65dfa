"""Does a layer run faster as a chain, on this machine? Both are run in turns, on what reaches the layer."""

from __future__ import annotations

from collections.abc import Sequence

from onnxopt.core.context import Context
from onnxopt.core.stream import segment
from onnxopt.errors import ExecutionError
from onnxopt.factoring.forms import Form, Ranks
from onnxopt.factoring.site import Site
from onnxopt.factoring.split import split
from onnxopt.graph.ir import is_constant, reads
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.runtime.session import Session
from onnxopt.runtime.target import NATIVE
from onnxopt.runtime.timing import Timing, interleave

_BUDGET_S = 0.04


class Trial:
    """Times layers of a model on the first ``latency_batch`` samples, where the target is this machine."""

    def __init__(self, model: Model, sites: Sequence[Site], context: Context) -> None:
        self._model, self._threads = model, context.threads
        self._values: dict[str, Array] = {}
        timed = [s for s in sites if s.graph is model.graph and not s.is_table] if context.target == NATIVE else []
        names = list(dict.fromkeys(t.name for s in timed for t in reads(s.node) if not is_constant(t)))
        if names:
            batch = context.latency_batch
            self._values = next(context.activations(model, names, batch, batch))

    def time(self, site: Site, form: Form, ranks: Ranks) -> Timing | None:
        """The layer against its chain; None where that cannot be told here."""
        if site.graph is not self._model.graph or site.is_table or site.x.name not in self._values:
            return None
        known = {t.name: self._values[t.name] for t in reads(site.node) if t.name in self._values}
        whole = segment(self._model, [site.node], known, [site.node.outputs[0].name])
        parts = whole.clone()
        (node,) = parts.graph.nodes
        split(parts, Site(node, parts.graph, site.at), form, form.any_factors(ranks))
        parts.tidy()
        try:
            before, after = (Session(m, threads=self._threads) for m in (whole, parts))
            return interleave(before, after, known, budget_s=_BUDGET_S)
        except ExecutionError:
            return None
