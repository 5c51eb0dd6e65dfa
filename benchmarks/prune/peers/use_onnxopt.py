"""onnxopt itself: passes on the calibration samples, without judging the result."""

from __future__ import annotations

from adapter import Request, run

from onnxopt import load, open_dataset, save
from onnxopt.core.manager import PassManager
from onnxopt.core.spec import parse


def prune(request: Request) -> None:
    """What ``passes`` says; ``{budget}`` in it is the share of the MACs to save, in percent."""
    model = load(request.source)
    passes = parse(request.options["passes"].format(budget=round(100 * request.options["budget"])))
    PassManager(passes).run(model, open_dataset(request.samples, model.inputs))
    save(model, request.output)


if __name__ == "__main__":
    run(prune, "onnxopt")
