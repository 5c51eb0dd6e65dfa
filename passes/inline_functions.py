"""Put local functions where they are called: exporters write repeated blocks so, and no other pass looks inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxopt.core.context import Context
from onnxopt.core.pass_ import Pass, PassResult, Skip
from onnxopt.errors import ModelError
from onnxopt.graph.inlining import inline_functions
from onnxopt.graph.model import Model


@dataclass(frozen=True, kw_only=True)
class InlineFunctions(Pass):
    """Replaces calls of the model's own functions by the nodes that these hold; exact."""

    name: ClassVar[str] = "inline-functions"
    exact: ClassVar[bool] = True

    def run(self, model: Model, context: Context) -> PassResult:
        try:
            changed, left = inline_functions(model)
        except ModelError as error:
            return PassResult(0, (Skip("model", str(error)),))
        return PassResult(changed, tuple(Skip(name, why) for name, why in left.items()))
