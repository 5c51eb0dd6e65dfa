"""Make weights of the inputs that have a default value.

Some exporters list every weight among the graph's inputs, as files before IR version 4 had to. A caller could then feed
other weights; hardly any does, and a runtime may neither fold nor pack what might change. Where most of the weights are
no inputs, somebody chose those that are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxopt.core.context import Context
from onnxopt.core.pass_ import Pass, PassResult, Skip, option
from onnxopt.graph.ir import Constant, replace_uses
from onnxopt.graph.model import Model


@dataclass(frozen=True, kw_only=True)
class FreezeDefaults(Pass):
    """Inputs that have a default value become weights: the caller can no longer feed them; exact."""

    name: ClassVar[str] = "freeze-defaults"
    exact: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("inline-functions",)

    all: bool = option(False, "also where most of the weights are no inputs")

    def run(self, model: Model, context: Context) -> PassResult:
        graph = model.graph
        if _bytes(graph.constants) >= _bytes(graph.defaults.values()) and graph.defaults and not self.all:
            why = "it is an input that somebody chose to have a default; freeze-defaults:all fixes it"
            return PassResult(0, tuple(Skip(name, why) for name in graph.defaults))
        frozen = [t for t in graph.inputs if t.name in graph.defaults]
        for tensor in frozen:
            constant = graph.defaults.pop(tensor.name)
            replace_uses(tensor, constant)
            graph.outputs = [constant if t is tensor else t for t in graph.outputs]
            graph.constants.append(constant)
        graph.inputs = [t for t in graph.inputs if not any(t is f for f in frozen)]
        return PassResult(len(frozen))


def _bytes(constants: Iterable[Constant]) -> int:
    """What the weights among these constants weigh; sizes and axes are none."""
    return sum(c.nbytes for c in constants if np.issubdtype(c.dtype, np.inexact))
