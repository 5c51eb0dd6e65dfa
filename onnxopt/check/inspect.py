"""What is in a model, and what every pass would do to it: each is tried on a copy."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import TYPE_CHECKING

import numpy as np

from onnxopt.core.context import Context
from onnxopt.core.manager import PassManager
from onnxopt.core.pass_ import Pass
from onnxopt.core.spec import known_passes
from onnxopt.errors import OnnxOptError
from onnxopt.graph.cost import cost
from onnxopt.graph.model import Model
from onnxopt.progress import Track, silent
from onnxopt.report.inspection import Inspection, Prospect

if TYPE_CHECKING:
    from onnxopt.data.dataset import Dataset

# Enough to see what a pass would do; how well it would do it is for a real run.
_SAMPLES = 8


def inspect(model: Model, dataset: Dataset, *, track: Track = silent) -> Inspection:
    """Look at a model. Passes run with their default options, each on the model as it is, over a few samples.

    Raises ExecutionError when the model does not run.
    """
    few = dataset.subset(np.arange(min(dataset.count, max(_SAMPLES, dataset.unit))))
    costs = cost(model, Context(model, few).shapes(model))
    types = [t for t in known_passes().values() if not _needs_options(t)]
    header = model.header
    return Inspection(
        path=str(model.path or ""),
        producer=f"{header.producer_name} {header.producer_version}".strip(),
        opsets={o.domain or "ai.onnx": o.version for o in header.opset_import},
        inputs=tuple(map(str, model.inputs)),
        outputs=tuple(map(str, model.outputs)),
        total=costs.total,
        operators=costs.operators,
        passes=tuple(_try(t(), model, few) for t in track(types, "try passes")),
        notes=few.notes,
    )


def _try(step: Pass, model: Model, dataset: Dataset) -> Prospect:
    """One pass, after those that it needs, on a copy."""
    copy = model.clone()
    try:
        last = PassManager([step]).run(copy, dataset).passes[-1]
    except OnnxOptError as error:
        return Prospect(step.name, step.exact, 0, failed=str(error))
    return Prospect(step.name, step.exact, last.changed, last.skips)


def _needs_options(pass_type: type[Pass]) -> bool:
    return any(f.default is MISSING and f.default_factory is MISSING for f in fields(pass_type))
