"""Torch-Pruning, on the model rebuilt in PyTorch, without training; on demand with BatchNorm's statistics anew."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch_pruning
from adapter import Request, first_line, run
from budget import nearest
from torch_net import Net, with_plain_shortcuts

_CLOSE = 1e-4
_IMPORTANCE = {
    "l1": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=1),
    "l2": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2),
    "fpgm": torch_pruning.importance.FPGMImportance,
    "lamp": torch_pruning.importance.LAMPImportance,
    "bn-scale": torch_pruning.importance.BNScaleImportance,
}


def prune(request: Request) -> None:
    """The setting whose MACs are the nearest to the budget from above."""
    torch.set_num_threads(1)
    feed = next(request.feeds())
    source = onnx.load(request.source)
    net = _followed(source, feed, request)
    if request.options["importance"] == "bn-scale" and not _norms(net):
        raise ValueError("the model has no BatchNormalization")

    def at(ratio: float) -> onnx.ModelProto:
        pruned = _pruned(net, ratio, feed, request.options)
        if request.options.get("statistics"):
            _statistics(pruned, request)
        return pruned.to_onnx()

    def sketch(ratio: float) -> onnx.ModelProto:
        return _pruned(net, ratio, feed, request.options).to_onnx()

    found = nearest(at, source, 1 - request.options["budget"], sketch)
    request.figures |= found.figures
    onnx.save(found.model, request.output)


def _pruned(net: Net, ratio: float, feed: dict[str, np.ndarray], options: dict[str, Any]) -> Net:
    net = copy.deepcopy(net)
    pruner = torch_pruning.pruner.BasePruner(
        net,
        _tensor(feed),
        importance=_IMPORTANCE[options["importance"]](),
        pruning_ratio=ratio,
        global_pruning=options.get("everywhere", False),
        isomorphic=options.get("isomorphic", False),
        round_to=options.get("round_to"),
        ignored_layers=[list(net.products())[-1]],
    )
    pruner.step()
    return net


def _followed(source: onnx.ModelProto, feed: dict[str, np.ndarray], request: Request) -> Net:
    """The module, as it is or with plain shortcuts, that still runs when it is pruned. Raises ValueError."""
    net = Net(source)
    _verify(net, source, feed)
    try:
        pruned = _pruned(net, 0.5, feed, {"importance": "l2"})
        _verify(pruned, pruned.to_onnx(), feed)
    except Exception as error:  # whatever it raises, the other form is left
        request.notes.append(f"shortcuts as convolutions, because otherwise: {first_line(error)}")
        net = Net(with_plain_shortcuts(source))
        _verify(net, source, feed)
    return net


def _verify(net: Net, model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> None:
    """Whether the module computes what ONNX Runtime does with the graph. Raises ValueError."""
    reference = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed)[0]
    with torch.no_grad():
        found = net(_tensor(feed)).numpy()
    error = float(np.abs(found - reference).max() / np.abs(reference).max())
    if not error < _CLOSE:
        raise ValueError(f"not rebuilt: the outputs differ by {error:.2g} of their range")


def _statistics(net: Net, request: Request) -> None:
    """Means and variances of every BatchNormalization as the pruned net has them, over all calibration samples."""
    norms = _norms(net)
    if not norms:
        raise ValueError("the model has no BatchNormalization")
    for norm in norms:
        norm.reset_running_stats()
    samples = torch.from_numpy(np.concatenate([next(iter(f.values())) for f in request.feeds()]))
    net.train()
    with torch.no_grad():
        for batch in samples.split(128):
            net(batch)
    net.eval()


def _norms(net: Net) -> list[torch.nn.BatchNorm2d]:
    return [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def _tensor(feed: dict[str, np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(next(iter(feed.values())))


if __name__ == "__main__":
    run(prune, "torch-pruning")
