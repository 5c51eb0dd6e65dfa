"""Make any ONNX model smaller and faster without breaking it, and prove it before it ships.

    from onnxopt import PassManager, load, passes, save

    model = load("model.onnx")
    report = PassManager([passes.Prune(ratio=0.3), passes.Quant()]).run(model, dataset="calib.npz")
    save(model, "model.opt.onnx")

``optimize`` does the same and judges the result as the command line does; ``judge`` compares two files.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxopt import passes
    from onnxopt.check.gates import Gates
    from onnxopt.core.manager import PassManager
    from onnxopt.core.pass_ import Pass, PassResult, Skip, option
    from onnxopt.core.rewrite import RewritePass
    from onnxopt.data.dataset import Dataset, open_dataset
    from onnxopt.errors import OnnxOptError
    from onnxopt.graph.io import load, save
    from onnxopt.graph.model import Model
    from onnxopt.job import DataOptions, RunOptions, judge, optimize
    from onnxopt.report.report import Report

__version__ = "0.1.0"

# Loaded when first asked for: ONNX Runtime takes its time, and the list of passes needs none of it.
_HOME = {
    "DataOptions": "onnxopt.job",
    "Dataset": "onnxopt.data.dataset",
    "Gates": "onnxopt.check.gates",
    "Model": "onnxopt.graph.model",
    "OnnxOptError": "onnxopt.errors",
    "Pass": "onnxopt.core.pass_",
    "PassManager": "onnxopt.core.manager",
    "PassResult": "onnxopt.core.pass_",
    "Report": "onnxopt.report.report",
    "RewritePass": "onnxopt.core.rewrite",
    "RunOptions": "onnxopt.job",
    "Skip": "onnxopt.core.pass_",
    "judge": "onnxopt.job",
    "load": "onnxopt.graph.io",
    "open_dataset": "onnxopt.data.dataset",
    "optimize": "onnxopt.job",
    "option": "onnxopt.core.pass_",
    "save": "onnxopt.graph.io",
}

__all__ = [
    "DataOptions", "Dataset", "Gates", "Model", "OnnxOptError", "Pass", "PassManager", "PassResult", "Report",
    "RewritePass", "RunOptions", "Skip", "judge", "load", "open_dataset", "optimize", "option", "passes", "save",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "passes":
        return importlib.import_module("onnxopt.passes")
    if name not in _HOME:
        raise AttributeError(f"module 'onnxopt' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
