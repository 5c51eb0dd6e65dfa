"""What is in a model, what every pass would do to it (each is tried on a copy), and which channels go together."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import MISSING, asdict, fields
from typing import TYPE_CHECKING

import numpy as np

from onnxopt.core.context import Context
from onnxopt.core.manager import PassManager
from onnxopt.core.pass_ import Pass
from onnxopt.core.spec import known_passes
from onnxopt.errors import ModelError, OnnxOptError
from onnxopt.graph.cost import cost
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.inlining import inline_functions
from onnxopt.graph.model import Model
from onnxopt.progress import Track, silent
from onnxopt.pruning.channels import producers
from onnxopt.pruning.groups import frozen, groups
from onnxopt.report.cut import Stays, Tied
from onnxopt.report.inspection import Coupled, Inspection, Prospect

if TYPE_CHECKING:
    from onnxopt.data.dataset import Dataset

# Enough to see what a pass would do; how well it would do it is for a real run.
_SAMPLES = 8


def inspect(model: Model, dataset: Dataset, *, coupling: bool = False, track: Track = silent) -> Inspection:
    """Look at a model. Passes run with their default options, each on the model as it is, over a few samples.

    With ``coupling`` none is tried: it tells which channels go together, and what holds the others. Raises
    ExecutionError when the model does not run.
    """
    few = dataset.subset(np.arange(min(dataset.count, max(_SAMPLES, dataset.unit))))
    costs = cost(model, Context(model, few).shapes(model))
    types = [] if coupling else [t for t in known_passes().values() if not _needs_options(t)]
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
        coupling=_coupled(model, few) if coupling else None,
    )


def _coupled(model: Model, dataset: Dataset) -> Coupled:
    """What goes together, local functions put where they are called: so pruning sees the model."""
    copy = model.clone()
    with suppress(ModelError):  # then they are operators without a rule, and told as such
        inline_functions(copy)
    context = Context(copy, dataset)
    tied = Coupling(copy, context.shapes(copy), context.free_axes(copy))
    makers = producers(copy.graph, tied)
    return Coupled(
        groups=tuple(Tied(**asdict(g)) for g in groups(copy, tied, makers)),
        frozen=tuple(Stays(**asdict(f)) for f in frozen(copy, tied, makers)),
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
