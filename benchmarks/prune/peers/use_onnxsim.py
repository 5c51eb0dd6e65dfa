"""onnxsim: simplify, then remove channels; by weights or by weights and activations, on demand with its own repair."""

from __future__ import annotations

from typing import Any

import onnx
import onnxsim
from adapter import Request, first_line, run
from budget import nearest


def prune(request: Request) -> None:
    """The setting whose MACs are the nearest to the budget from above."""
    options = request.options
    whole = onnx.load(request.source)
    try:
        model, _ = onnxsim.simplify(whole)
    except Exception as error:  # whatever it raises, the plain model is left
        request.notes.append(f"simplify: {first_line(error)}")
        model = whole
    settings: dict[str, Any] = {
        "importance_norm": options["importance"],
        "global_sparsity": options.get("everywhere", False),
    }
    feeds = list(request.feeds())[: options.get("feeds")]

    def by_weights(ratio: float) -> onnx.ModelProto:
        return onnxsim.apply_structured_pruning(model, ratio, **settings)

    def by_activations(ratio: float) -> onnx.ModelProto:
        pruned = onnxsim.apply_structured_wanda_pruning(model, feeds, sparsity=ratio, **settings)
        return onnxsim.apply_pruning_finetune(model, pruned, feeds) if options.get("repair") else pruned

    at = by_activations if options.get("activations") else by_weights
    # Where each layer loses the same share, what is chosen by does not change the sizes.
    sketch = at if options.get("everywhere") else by_weights
    found = nearest(at, whole, 1 - options["budget"], sketch)
    request.figures |= found.figures
    onnx.save(found.model, request.output)


if __name__ == "__main__":
    run(prune, "onnxsim")
