"""Half the bytes: float16 for the whole computation, or for the weights in the file alone.

    weights=true   a Cast behind each weight makes float32 of it when the model loads: a smaller file, the same speed
    weights=false  nodes compute in float16, between Casts behind the inputs and before the outputs

ONNX Runtime computes in float32 what it has no float16 kernel for, and converts before and after: such nodes are left
as they are, and so is the whole model where the processor has no float16 arithmetic. anyway=true is for other runtimes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from onnxopt.core.context import Context
from onnxopt.core.pass_ import Figure, Pass, PassResult, Preflight, Skip, label, option
from onnxopt.core.quality import Comparison, Quality
from onnxopt.core.reasons import tried
from onnxopt.errors import ExecutionError, ModelError
from onnxopt.graph.model import Model
from onnxopt.runtime.half_kernels import BEST_OPSET, no_half_kernel, place
from onnxopt.runtime.session import Session
from onnxopt.runtime.target import NATIVE, Target
from onnxopt.runtime.timing import Timing, interleave
from onnxopt.weights.half import INTEGERS
from onnxopt.weights.half_graph import convert, draft, few_bytes, rounding, store_weights

_OLDEST_OPSET = 7
_NAMED = 3
_JUDGED = 32
_TIMING_S = 1.0
# What is as quick computes in float32 after all: the weights alone in float16 then keep the answers nearer.
_QUICKER = 1.03
# Answers that are not as near are worth a tenth of the bytes.
_POOR_DB = 40.0
_NEARER_DB = 1.0
_ANYWAY = "anyway=true does it all the same, as for a GPU; weights=true halves the file"
_NOTHING = "it hardly gains by float16, with as many Casts as nodes; weights=true halves the file"
_LOADED = "a runtime makes float32 of the weights when it loads: a smaller file, the same memory and time"


@dataclass(frozen=True, kw_only=True)
class Fp16(Pass):
    """float16: half the bytes; quicker where the processor computes in it. Inputs and outputs keep their types."""

    name: ClassVar[str] = "fp16"
    after: ClassVar[tuple[str, ...]] = (
        "inline-functions", "freeze-defaults", "fold-constants", "clean", "fold-bn", "conv-shortcut", "prune", "svd",
        "sparsify", "quant", "quant-dynamic", "quant-weights", "cluster",
    )  # fmt: skip
    prepare: ClassVar[tuple[str, ...]] = ("inline-functions", "fold-constants", "fold-bn")

    weights: bool = option(False, "store weights alone in float16, and compute in float32 as before")
    anyway: bool = option(False, "compute in float16 even where the target is no quicker in it, as for a GPU")
    samples: int = option(64, "how many samples to look for overflow and lost values with, at most")

    def __post_init__(self) -> None:
        if self.weights and self.anyway:
            raise ValueError("with weights=true nothing is computed in float16; leave anyway out")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")

    def run(self, model: Model, context: Context) -> PassResult:
        try:
            return self._run(model, context)
        except ExecutionError as error:
            return PassResult(0, (Skip("model", f"what it becomes cannot be run: {error}"),))

    def _run(self, model: Model, context: Context) -> PassResult:
        if why := "" if self.weights else _refusal(model, context.target, self.anyway):
            return PassResult(0, (Skip("model", why),))
        candidate = model.clone()
        try:
            _upgrade(candidate, _OLDEST_OPSET if self.weights or self.anyway else BEST_OPSET)
        except ModelError as error:
            return PassResult(0, (Skip("model", str(error)),))
        nodes, skips, figures = 0, [], dict[str, Figure]()
        timed = not self.weights and not self.anyway and context.target.name == NATIVE.name
        if timed and (why := _slower(model, draft(candidate, context), context, figures)):
            return PassResult(0, (Skip("model", why),), figures)
        if not self.weights:
            found = convert(candidate, context, self.samples, anyway=self.anyway)
            candidate, nodes, skips = found.model, found.nodes, list(found.skips)
            if not nodes:
                return PassResult(0, tuple(skips or [Skip("model", _NOTHING)]))
            figures |= {"nodes": found.nodes, "nodes_with_kernel": found.executed, "casts": found.casts}
        whole = candidate.clone() if self.weights else candidate
        count, left = store_weights(candidate)
        skips += [s for s in left if s not in skips]
        if not nodes + count:
            return PassResult(0, tuple(skips))
        if timed and (why := _slower(model, candidate, context, figures)):
            return PassResult(0, (Skip("model", why),), figures)
        quality = _quality(model, candidate, context)
        notes = [] if nodes else [_LOADED]
        if self.weights and quality.sqnr_db < _POOR_DB:
            few, least = whole.clone(), few_bytes(whole)
            fewer, _ = store_weights(few, least)
            nearer = _quality(model, few, context)
            if nearer.sqnr_db > quality.sqnr_db + _NEARER_DB:
                notes.append(
                    f"weights below {least} bytes stay float32; else the answers keep {quality.sqnr_db:.1f} dB"
                )
                candidate, count, quality = few, fewer, nearer
        if not nodes + count:
            return PassResult(0, tuple(skips))
        if quality.sqnr_db < _POOR_DB:
            notes.append(f"the answers keep {quality.sqnr_db:.1f} dB: the model makes much of small differences")
        figures |= {
            "weights": count,
            "weight_bytes": [model.constant_bytes(), candidate.constant_bytes()],
            "sqnr_db": round(quality.sqnr_db, 2),
            "notes": notes,
        }
        model.adopt(candidate)
        return PassResult(nodes + count, tuple(skips), figures)

    def preflight(self, model: Model, context: Context) -> Preflight:
        """Does it to a copy with a few samples, and asks the clock, which may answer otherwise when it runs."""
        return tried(self, model, context, "nothing would become float16")


def _refusal(model: Model, target: Target, anyway: bool) -> str:
    """Why a model is not to compute in float16 on a target, as far as it is known without trying."""
    if found := next((n for n in model.nodes() if n.op in INTEGERS), None):
        return f"it holds integers ('{label(found)}'), which a runtime no longer runs as such between float16 nodes"
    if anyway or target.float16:
        return ""
    lacking = Counter(n.op for n in model.nodes() if no_half_kernel(n.op, BEST_OPSET, target))
    why = f"{place(target)} has no float16 arithmetic"
    if lacking:
        most = ", ".join(op for op, _ in lacking.most_common(_NAMED))
        why += f": ONNX Runtime has no float16 {most} there, and converts before and after each"
    return f"{why}; {_ANYWAY}"


def _upgrade(model: Model, opset: int) -> None:
    """Raises ModelError where not even the oldest that has float16 can be had."""
    try:
        model.upgrade(opset)
    except ModelError:
        model.upgrade(_OLDEST_OPSET)


def _slower(model: Model, candidate: Model, context: Context, figures: dict[str, Figure]) -> str:
    """Why a candidate is not worth it here; ``figures`` gains its speed."""
    timing = _speed(model, candidate, context)
    figures["speed"] = [round(t, 3) for t in (timing.speedup, timing.speedup_low, timing.speedup_high)]
    if timing.speedup >= _QUICKER:
        return ""
    return f"float16 is not quicker here, {timing.speedup:.2f} times as quick; {_ANYWAY}"


def _speed(model: Model, candidate: Model, context: Context) -> Timing:
    feed = next(iter(context.dataset.batches(context.latency_batch, stop=context.latency_batch)))
    before, after = (Session(m, threads=context.threads) for m in (model, candidate))
    return interleave(before, after, feed, budget_s=_TIMING_S)


def _quality(model: Model, candidate: Model, context: Context) -> Quality:
    """How near the answers are where every float16 tensor is rounded, as on a processor that computes in it."""
    before = Session(model, threads=context.threads)
    after = Session(rounding(candidate), threads=context.threads, optimize=False)
    comparison = Comparison(None)
    for feed in context.dataset.batches(min(context.batch, _JUDGED), stop=_JUDGED):
        comparison.add(feed, before.run(feed), after.run(feed))
    return comparison.result(min(_JUDGED, context.dataset.count))
