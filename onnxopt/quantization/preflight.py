"""What quantization would do, from a few samples: which layers it would take, why not the others, memory and time."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from math import prod

from onnxopt.core.context import Context
from onnxopt.core.pass_ import Preflight, Skip
from onnxopt.graph.model import Model
from onnxopt.quantization.candidate import Builder, Candidate
from onnxopt.quantization.sensitivity import mac_shares
from onnxopt.runtime.session import Session

# What a reason is called, by what its sentence says: the codes stay when the sentences are worded anew.
_CODES = (
    ("quantized", r"quantized already"),
    ("excluded", r"^exclude"),
    ("in-body", r"in the body of"),
    ("dynamic-only", r"dynamic scales only"),
    ("attributes", r"no integer kernel for \w+=|^there is no integer kernel"),
    ("no-kernel", r"has no integer kernel|static scales$"),
    ("opset", r"opset"),
    ("weights-at-run-time", r"weights are computed at run time"),
    ("bias", r"its bias is"),
    ("weights", r"its weights (are|have)"),
    ("type", r"not float32|of unknown type"),
    ("constant", r"inputs are constant"),
    ("size", r"unknown size|is empty"),
    ("padding", r"it pads with|count what it pads"),
    ("values", r"NaN|as large as|is zero on all|never computed"),
    ("refused", r"ONNX Runtime"),
    ("slower", r"slower in integers"),
    ("answers", r"answers' sake"),
)
# Samples that are looked at, or batches where the graph fixes them.
FEW = 8
# Runs of the float model that calibration takes for each sample, watching and counting included.
_FORWARDS = 4
# Batches are chosen so that what is watched takes about so much; it is held twice for a moment.
_WATCHED_BYTES = 2 * 32 * 2**20
# The model, the copy that is changed, the one that the runtime is given, and the runtime's own.
_COPIES = 4
_RUNS = 3


def code(why: str) -> str:
    """What a reason for leaving a node float is called; ``other`` for one that has no name."""
    return next((name for name, pattern in _CODES if re.search(pattern, why)), "other")


def refused(why: str, skips: Iterable[Skip] = ()) -> Preflight:
    """Nothing would be gained."""
    return Preflight(0, coded(skips), refusal=why)


def preflight(builder: Builder, context: Context, notes: tuple[Skip, ...] = ()) -> Preflight:
    """What a builder makes of its model; the builder has a few samples, ``context`` all of them."""
    began = time.perf_counter()
    candidate = builder.build({})
    seconds = time.perf_counter() - began
    if not isinstance(candidate, Candidate):
        skips = (*notes, *candidate)
        return refused(f"no layer would run in integers{mostly(skips)}", skips)
    run_s = _run_seconds(builder)
    shares = mac_shares(builder)
    return Preflight(
        len(candidate.layers),
        coded((*notes, *candidate.skips)),
        {
            "integer_share": sum(shares[n][1] or 0.0 for n in candidate.layers),
            "seconds": round(seconds + _FORWARDS * run_s * context.dataset.count, 1),
            "peak_bytes": _peak_bytes(builder.plain, builder, candidate),
            "samples": context.dataset.count,
            "run_ms": round(1e3 * run_s, 4),
        },
    )


def _run_seconds(builder: Builder) -> float:
    """One run of the float model on one sample: the quickest of a few."""
    session = Session(builder.plain, threads=builder.context.threads)
    feed = next(iter(builder.context.dataset.batches(1, stop=1)))
    times = []
    for _ in range(_RUNS):
        began = time.perf_counter()
        session.run(feed)
        times.append(time.perf_counter() - began)
    return min(times)


def _peak_bytes(model: Model, builder: Builder, candidate: Candidate) -> int:
    watched = 4 * sum(prod(builder.sizes[t]) for t in set(candidate.placement.roots.values()))
    return _COPIES * model.constant_bytes() + max(_WATCHED_BYTES, 2 * watched)


def coded(skips: Iterable[Skip]) -> tuple[tuple[str, str, str], ...]:
    """Skips as a preflight tells them: with the code of the reason before each."""
    return tuple((code(s.why), s.node, s.why) for s in skips)


def mostly(skips: Iterable[Skip]) -> str:
    """The most common reason, behind a colon."""
    whys = [s.why for s in skips]
    return f": {max(whys, key=whys.count)}" if whys else ": it has none"
