"""What nodes of a model compute from constants, by running just those nodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxopt.errors import ExecutionError
from onnxopt.graph.foldable import read_elsewhere
from onnxopt.graph.ir import Node, Variable, replace_uses
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array, Feed
from onnxopt.runtime.session import Session

_FED_BYTES = 2**16


def evaluate(model: Model, nodes: Sequence[Node], kept: dict[Node, str]) -> dict[str, Array] | None:
    """What others read of the nodes' results, by name; None where a node cannot be run, which then is in ``kept``."""
    try:
        return _run(model, nodes)
    except ExecutionError as error:
        why = str(error)
    # The first so many nodes need none of the later ones: search for the shortest such list that fails.
    good, bad = 0, len(nodes)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            _run(model, nodes[:middle])
            good = middle
        except ExecutionError as error:
            bad, why = middle, str(error)
    kept[nodes[bad - 1]] = why
    return None


def _run(model: Model, nodes: Sequence[Node]) -> dict[str, Array]:
    """Run nodes by themselves. Large constants are fed, which spares two copies of each."""
    part = model.clone()
    made = {t.name for n in nodes for t in n.outputs if t.name}
    graph = part.graph
    graph.nodes = [n for n in part.nodes() if any(t.name in made for t in n.outputs)]
    graph.inputs, graph.outputs, graph.constants, graph.defaults = [], [], [], {}
    feed: Feed = {}
    for constant in part.constants():
        if constant.nbytes > _FED_BYTES and constant.dtype.kind in "fiub":
            fed = Variable(constant.name, constant.dtype, constant.shape)
            feed[fed.name] = np.asarray(constant.values)
            replace_uses(constant, fed)
            graph.inputs.append(fed)
    return Session(part, outputs=[t.name for t in read_elsewhere(nodes)], optimize=False).run(feed)
