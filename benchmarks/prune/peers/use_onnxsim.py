"""onnxsim: simplify, then remove channels; by weights or by weights and activations, on demand with its own repair."""

from __future__ import annotations

from typing import Any

import onnx
import onnxsim
from adapter import Feed, Request, first_line, run
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

    def at(ratio: float, feeds: list[Feed] = feeds) -> onnx.ModelProto:
        if not options.get("activations"):
            return onnxsim.apply_structured_pruning(model, ratio, **settings)
        pruned = onnxsim.apply_structured_wanda_pruning(model, feeds, sparsity=ratio, **settings)
        return onnxsim.apply_pruning_finetune(model, pruned, feeds) if options.get("repair") else pruned

    def sketch(ratio: float) -> onnx.ModelProto:
        # Where each layer loses the same share, the samples do not change the sizes.
        return at(ratio, feeds if options.get("everywhere") else feeds[:1])

    found = nearest(at, whole, 1 - options["budget"], sketch)
    request.figures |= found.figures
    onnx.save(found.model, request.output)


if __name__ == "__main__":
    run(prune, "onnxsim")
