"""How much a model's outputs change with each class of channels, to first order.

Let J_c be the derivative of the outputs by a factor on class c wherever it is summed over, at the factor 1. The squared
error of the outputs against the original has its minimum, 0, at the original: its gradient says nothing, and its second
derivative by the factor is 2 |J_c|^2 (Gauss and Newton's form). So |J_c|^2, as a share of the outputs' power, is what
removing the class would cost if the model were linear in it. Molchanov et al., Importance Estimation for Neural Network
Pruning, 2019, square the derivative of a loss so; the outputs themselves need no labels.

Derivatives are differences: the model is given one more input, a factor for each class, and is run once for each with
that factor a step below 1. Nothing is known of a derivative that is not seen this way, and all operators are alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import floor, log2
from typing import Any

import numpy as np
from onnx import helper

from onnxopt.core.context import Context
from onnxopt.errors import PassError
from onnxopt.graph import shapes
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.ir import Node, Tensor, Variable
from onnxopt.graph.labels import Labels
from onnxopt.graph.layer import Floats
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.runtime.session import Session

# Times that a sample passes the model, classes times samples: a minute where one pass takes 4 ms.
_PASSES = 2**14
# What rounding leaves of an output, in units of its last place.
_ROUNDING = 32
_EIGHT_BITS = 2.0**-8


def passes(classes: int, samples: int) -> int:
    """How many of the samples are taken: as many as make 16,384 passes of one sample, and at least one."""
    return max(1, min(samples, _PASSES // max(classes, 1)))


def sensitivities(model: Model, coupling: Coupling, classes: Labels, context: Context, samples: int) -> Floats:
    """By class, (coupling.count + 1,): |J_c|^2 over the power of the outputs, averaged over the outputs; else NaN.

    Outputs that are not floats are left out, and so are those whose shape changes. Raises PassError where none is left.
    """
    factored, factors, step = _factored(model, coupling)
    session = Session(factored, threads=context.threads)
    change: dict[str, Floats] = {}
    power: dict[str, float] = {}
    batches = list(context.dataset.batches(context.batch, stop=passes(len(classes), samples)))
    rounds = [(feed, c) for feed in batches for c in (0, *classes.tolist())]
    for feed, c in context.track(rounds, "derivatives"):
        given = np.ones(coupling.count + 1, np.float32)
        given[c] -= step if c else 0
        answers = _floats(session.run(feed | {factors: given}))
        if not c:
            before = answers
            power = {name: power.get(name, 0.0) + _power(y) for name, y in before.items()}
            continue
        for name, y in before.items():
            if answers[name].shape == y.shape:
                change.setdefault(name, np.zeros(coupling.count + 1))[c] += _power(_difference(answers[name], y))
    if not change:
        raise PassError("prune:criterion=taylor looks at outputs that are floats, and there is none; choose another")
    result = np.full(coupling.count + 1, np.nan)
    shares = [change[name][classes] / max(power[name], 1e-30) for name in change]
    result[classes] = np.mean(shares, axis=0) / step**2
    return result


def _factored(model: Model, coupling: Coupling) -> tuple[Model, str, float]:
    """A copy that multiplies every class, wherever it is summed over, by a factor that is an input of this name.

    Also the step for differences: the square root of what rounding leaves of an output, at the coarsest type met.
    """
    result = model.clone()
    types = shapes.specs(model)
    by_output = {t.name: (graph, n) for graph in result.graphs() for n in graph.nodes for t in n.outputs if t.name}
    given = Variable(result.fresh_name("factors"), np.dtype(np.float32), [coupling.count + 1])
    result.graph.inputs.append(given)
    of_type: dict[np.dtype[Any], Variable] = {np.dtype(np.float32): given}
    grains = [_EIGHT_BITS for n in model.nodes() if n.op in ("QuantizeLinear", "DynamicQuantizeLinear")]
    for place in coupling.contractions:
        classes = coupling.input(*place)
        graph, node = by_output[next(t.name for t in place.node.outputs if t.name)]
        x = node.inputs[place.slot]
        dtype = np.dtype(types[x.name].dtype if x.name in types else x.dtype or np.float32)
        if not classes.any() or not np.issubdtype(dtype, np.floating):
            continue
        grains.append(float(np.finfo(dtype).eps))
        if dtype not in of_type:
            of_type[dtype] = Variable(result.fresh_name(f"factors_{dtype}"), dtype)
            _append(result, "Cast", [given], of_type[dtype], {"to": helper.np_dtype_to_tensor_dtype(dtype)})
        rank = coupling.rank(place.node.inputs[place.slot])
        where = result.constant(
            f"{x.name}_classes", classes.reshape([-1 if k == place.axis else 1 for k in range(rank)])
        )
        factor, y = (Variable(result.fresh_name(f"{x.name}_{what}"), dtype) for what in ("factors", "scaled"))
        _append(result, "Gather", [of_type[dtype], where], factor, {})
        graph.nodes.append(Node("Mul", result.fresh_name(f"{y.name}_mul"), [x, factor], [y]))
        node.inputs[place.slot] = y
    result.tidy()
    return result, given.name, 2.0 ** floor(log2(_ROUNDING * max(grains, default=1.0)) / 2)


def _append(model: Model, op: str, inputs: list[Tensor], output: Variable, attrs: dict[str, Any]) -> None:
    model.graph.nodes.append(Node(op, model.fresh_name(f"{output.name}_{op.lower()}"), inputs, [output], attrs))


def _floats(answers: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs that are tensors of floats."""
    return {k: y for k, y in answers.items() if isinstance(y, np.ndarray) and np.issubdtype(y.dtype, np.floating)}


def _difference(a: Array, b: Array) -> Array:
    with np.errstate(invalid="ignore"):  # of two infinite values
        return np.asarray(a - b)


def _power(y: Array) -> float:
    """The sum of squares of what is finite."""
    return float(np.square(y, dtype=np.float64).sum(where=np.isfinite(y)))
