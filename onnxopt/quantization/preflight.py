"""What quantization would do, from a few samples: which layers it would take, why not the others, memory and time."""

from __future__ import annotations

import time
from math import prod

from onnxopt.core.context import Context
from onnxopt.core.pass_ import Preflight, Skip
from onnxopt.core.reasons import coded, mostly, refused
from onnxopt.graph.model import Model
from onnxopt.quantization.candidate import Builder, Candidate
from onnxopt.quantization.sensitivity import mac_shares
from onnxopt.runtime.session import Session

# Runs of the float model that calibration takes for each sample, watching and counting included.
_FORWARDS = 4
# Batches are chosen so that what is watched takes about so much; it is held twice for a moment.
_WATCHED_BYTES = 2 * 32 * 2**20
# The model, the copy that is changed, the one that the runtime is given, and the runtime's own.
_COPIES = 4
_RUNS = 3


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
