"""Take out what does nothing: dead nodes, nodes that hand their input on unchanged, constants unread or stored twice.

The names at the graph's boundary stay: where such a node makes an output of the graph, the node before it makes that
output instead; where nothing is before it, it stays. Of two transposes, casts or reshapes in a row one is enough:

    transpose(transpose(x, p), q) = transpose(x, p[q])
    cast(cast(x, A), B) = cast(x, B)            if A holds every value of x's type
    reshape(reshape(x, s), t) = reshape(x, t)   if t says all: no 0, which copies a size of the input
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx

from onnxopt.core.pass_ import PassResult, Skip, label
from onnxopt.core.rewrite import RewritePass
from onnxopt.graph.duplicates import merge_duplicates
from onnxopt.graph.ir import Node, Scope, Tensor, detach, replace_uses
from onnxopt.graph.model import Model
from onnxopt.graph.needless import integers, is_needless, known_dtype, permutation

if TYPE_CHECKING:
    from onnxopt.core.context import Context

_SAME_ELEMENTS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class Match:
    """``node`` gives what ``source`` holds already; or, with ``attrs``, it shall read ``source`` and take those."""

    node: Node
    source: Tensor
    scope: Scope
    attrs: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Clean(RewritePass[Match]):
    """Takes out dead nodes, identities, doubled transposes and casts, unread and duplicate constants; exact."""

    name: ClassVar[str] = "clean"
    exact: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("inline-functions", "freeze-defaults", "fold-constants")

    def run(self, model: Model, context: Context) -> PassResult:
        constants = len(model.constants())
        dead = model.tidy()
        unread = constants - len(model.constants())
        rewritten = super().run(model, context)
        duplicates, saved = merge_duplicates(model)
        figures = {
            "dead_nodes": dead,
            "needless_nodes": rewritten.changed,
            "unread_constants": unread,
            "duplicate_constants": duplicates,
            "duplicate_bytes": saved,
        }
        return PassResult(dead + unread + rewritten.changed + duplicates, rewritten.skips, figures)

    def match(self, node: Node, scope: Scope) -> Match | Skip | None:
        found = Match(node, node.inputs[0], scope) if is_needless(node, scope) else _doubled(node, scope)
        if found is None or found.attrs is not None or not scope.is_output(node.outputs[0]):
            return found
        if scope.producer(found.source) is None or scope.is_output(found.source):
            return Skip(label(node), f"it gives '{found.source.name}' the second name '{node.outputs[0].name}'")
        return found

    def rewrite(self, match: Match, model: Model) -> None:
        node, source = match.node, match.source
        if match.attrs is not None:
            node.inputs[0] = source
            node.attrs.update(match.attrs)
            return
        target = node.outputs[0]
        detach(node)
        if match.scope.is_output(target):
            maker = source.inputs[0]
            place = next(i for i, t in enumerate(maker.outputs) if t is source)
            replace_uses(source, target)
            maker.outputs[place] = target
        else:
            replace_uses(target, source)


def _doubled(node: Node, scope: Scope) -> Match | None:
    """Does the node undo or repeat the one before it?"""
    first = scope.producer(node.inputs[0]) if node.inputs else None
    if first is None or not (node.is_standard and first.is_standard):
        return None
    if node.op == first.op == "Transpose":
        return _two_transposes(first, node, scope)
    if node.op == first.op == "Cast":
        return _two_casts(first, node, scope)
    if node.op == "Reshape" and first.op in _SAME_ELEMENTS and scope.used_once(node.inputs[0]):
        shape = integers(node, "shape", 1)
        return Match(node, first.inputs[0], scope, {}) if shape is not None and 0 not in shape else None
    return None


def _two_transposes(first: Node, second: Node, scope: Scope) -> Match | None:
    inner, outer = permutation(first, scope), permutation(second, scope)
    if inner is None or outer is None:
        return None
    perm = [inner[axis] for axis in outer]
    if perm == sorted(perm):
        return Match(second, first.inputs[0], scope)
    return Match(second, first.inputs[0], scope, {"perm": perm}) if scope.used_once(second.inputs[0]) else None


def _two_casts(first: Node, second: Node, scope: Scope) -> Match | None:
    narrow, wide = known_dtype(first.inputs[0], scope), known_dtype(second.inputs[0], scope)
    if narrow is None or wide is None or not _holds_every_value(wide, narrow):
        return None
    if onnx.helper.np_dtype_to_tensor_dtype(narrow) == second.attrs["to"]:
        return Match(second, first.inputs[0], scope)
    return Match(second, first.inputs[0], scope, {}) if scope.used_once(second.inputs[0]) else None


def _holds_every_value(wide: np.dtype[Any], narrow: np.dtype[Any]) -> bool:
    # To numpy 64-bit integers are safe in float64, which has 53 bits for them.
    rounds = narrow.kind in "iu" and narrow.itemsize == 8 and wide.kind == "f"
    return not rounds and np.can_cast(narrow, wide, "safe")
