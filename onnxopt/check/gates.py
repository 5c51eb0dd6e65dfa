"""Gates: what a result must hold to before it is saved.

Speed and size are always judged. Of the three that judge answers, those that were asked for; if none was, the strongest
that the data allows: accuracy where there are labels enough to tell a point, agreement where there are classes,
otherwise signal to noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnxopt.check.quality import Quality
from onnxopt.report import words
from onnxopt.report.report import GateResult, TargetResult, Validation

# The defaults. An answer in ten may change its top class where nobody can say which was right: the best full-integer
# forms of published ImageNet nets lie at 92 to 98 %. Noise of 3 % of the signal's energy (15 dB) is where detectors and
# token models begin to answer otherwise.
MAX_DROP = 0.01
MIN_AGREEMENT = 0.90
MIN_SQNR_DB = 15.0
MIN_SPEEDUP = 1.0
# Two files that run in the very same kernels differ by up to 0.5 %: where their weights happen to lie.
_SPEED_RESOLUTION = 0.01
# A median below this is slower, however far the machine scatters the rest.
SLOW = 0.8
# So many labelled samples can tell one point: of fewer, a single answer decides.
_ENOUGH_LABELS = 300
# Growth that the default allows: shapes made explicit, and the remarks on where the model came from.
_GROWTH, _REMARKS_BYTES = 1.01, 16_384


@dataclass(frozen=True, kw_only=True)
class Gates:
    """What is demanded. None: the default above, where it makes sense.

    ``max_drop``: accuracy lost, as a share of all samples (0.01 is one point). ``min_agreement``: share of samples
    whose top-1 answer stays. ``min_sqnr``: dB, of the worst output. ``min_speedup``: 1 is as fast as the reference.
    ``max_size``: bytes, weights beside the model included (default: no more than the original).
    """

    max_drop: float | None = None
    min_agreement: float | None = None
    min_sqnr: float | None = None
    min_speedup: float | None = None
    max_size: int | None = None


def evaluate(
    gates: Gates, validation: Validation, size_reference: int, size: int, *, elsewhere: bool = False
) -> tuple[GateResult, ...]:
    """Judge a validation and the two sizes in bytes. A gate that was asked for and cannot be measured does not hold.

    ``elsewhere``: the model is made for another processor than it was validated on.
    """
    judged = answers(gates, validation, validation.samples)
    return (*judged, _speed(gates, validation, elsewhere), _size(gates, size_reference, size))


def answers(gates: Gates, v: Quality | Validation, samples: int) -> list[GateResult]:
    """Judge how near the answers to so many samples are."""
    if gates.max_drop is gates.min_agreement is gates.min_sqnr is None:
        if v.accuracy is not None and samples >= _ENOUGH_LABELS:
            return [_drop(MAX_DROP, v, samples)]
        return [_agreement(MIN_AGREEMENT, v, samples) if v.agreement is not None else _sqnr(MIN_SQNR_DB, v)]
    found = []
    if gates.max_drop is not None:
        found.append(_drop(gates.max_drop, v, samples))
    if gates.min_agreement is not None:
        found.append(_agreement(gates.min_agreement, v, samples))
    if gates.min_sqnr is not None:
        found.append(_sqnr(gates.min_sqnr, v))
    return found


def _drop(limit: float, v: Quality | Validation, samples: int) -> GateResult:
    if v.accuracy is None or v.accuracy_reference is None:
        why = "accuracy cannot be measured: the data has no labels that fit; give labels, or use --min-agreement"
        return GateResult("max-drop", limit, None, False, why)
    drop = v.accuracy_reference - v.accuracy
    change = f"{100 * drop:.1f} points lost" if drop > 0 else "nothing lost"
    why = (
        f"accuracy {words.share(v.accuracy)} after {words.share(v.accuracy_reference)} on {_samples(samples)}: "
        f"{change}, {100 * limit:g} allowed"
    )
    return GateResult("max-drop", limit, drop, drop <= limit + 1e-9, why)


def _agreement(limit: float, v: Quality | Validation, samples: int) -> GateResult:
    if v.agreement is None:
        why = "agreement cannot be measured: no output looks like scores of classes; use --min-sqnr"
        return GateResult("min-agreement", limit, None, False, why)
    why = f"{words.share(v.agreement)} of the top answers stay on {_samples(samples)}, {words.share(limit)} wanted"
    return GateResult("min-agreement", limit, v.agreement, v.agreement >= limit - 1e-9, why)


def _samples(n: int) -> str:
    """How many; and how coarse that makes a share, where that matters."""
    few = f" (one is {100 / n:.1f} points)" if n < 100 else ""
    return words.many(n, "sample") + few


def _sqnr(limit: float, v: Quality | Validation) -> GateResult:
    if math.isnan(v.sqnr_db):
        return GateResult("min-sqnr", limit, None, False, "no output could be compared")
    worst = min(v.outputs, key=lambda o: o.sqnr_db).name if v.outputs else "?"
    if v.sqnr_db == -math.inf:
        why = f"the output '{worst}' is unusable: it has NaN, infinities or values where the original has none"
    elif v.sqnr_db == math.inf:
        why = "the outputs are equal"
    else:
        why = f"{v.sqnr_db:.1f} dB signal to noise in '{worst}', {limit:g} dB wanted"
    return GateResult("min-sqnr", limit, v.sqnr_db, v.sqnr_db >= limit, why)


def _speed(gates: Gates, v: Validation, elsewhere: bool) -> GateResult:
    limit = MIN_SPEEDUP if gates.min_speedup is None else gates.min_speedup
    holds: bool | None = fast_enough(gates, v.speedup, v.speedup_high)
    why = f"{v.speedup:.2f} times as fast ({v.speedup_low:.2f} to {v.speedup_high:.2f}), {limit:g} wanted"
    if elsewhere and gates.min_speedup is None:
        holds, why = None, f"{why}; but on {v.target}, which says nothing of the processor it is made for"
    return GateResult("min-speedup", limit, v.speedup, holds, why)


def fast_enough(gates: Gates, speedup: float, speedup_high: float) -> bool:
    """The default fails what is slower for certain, in every round, with the whole confidence interval, by more than
    timing can tell; and what mostly is by a fifth."""
    if gates.min_speedup is None:
        return speedup >= SLOW and speedup_high >= MIN_SPEEDUP - _SPEED_RESOLUTION
    return speedup >= gates.min_speedup


def on_all(results: Sequence[TargetResult]) -> GateResult:
    """Whether the model holds on every target that it was run on; nothing to say where it was run on none."""
    failed = [t.target for t in results if t.status == "failed"]
    unchecked = [t.target for t in results if t.status == "not checked"]
    checked = len(results) - len(unchecked)
    parts = [f"{checked - len(failed)} of {checked} pass"]
    parts += [f"fails on {', '.join(failed)}"] if failed else []
    parts += [f"not checked on {', '.join(unchecked)}"] if unchecked else []
    return GateResult("targets", checked, checked - len(failed), not failed if checked else None, "; ".join(parts))


def _size(gates: Gates, before: int, after: int) -> GateResult:
    limit = int(before * _GROWTH) + _REMARKS_BYTES if gates.max_size is None else gates.max_size
    why = f"{words.size(after)} after {words.size(before)}, at most {words.size(limit)} wanted"
    return GateResult("max-size", limit, after, after <= limit, why)
