"""The answer of a run, as values: frozen, without behaviour, ready to become text or JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

SCHEMA = "onnxopt-report-1"

Verdict: TypeAlias = Literal["accepted", "rejected", "forced", "not validated", "not judged"]
TargetStatus: TypeAlias = Literal["passed", "failed", "not checked"]


@dataclass(frozen=True)
class StepReport:
    """What one pass did: its spec, seconds, places changed, (node, reason) left alone, figures by name."""

    spec: str
    seconds: float
    changed: int
    skips: tuple[tuple[str, str], ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FileInfo:
    """A model on disk: bytes include external data; sha256 is that of the model file."""

    path: str
    sha256: str
    bytes: int
    parameters: int
    macs: int | None


@dataclass(frozen=True)
class OutputQuality:
    """One output of the candidate against the reference.

    ``sqnr_db`` is 10 log10 of the reference's energy over the error's: infinite when nothing differs, minus infinity
    when NaN or infinities came in. Outputs that name things (int32, int64, bool, text) are compared by ``equal``, the
    share of equal elements: an unequal one counts as an error as large as the signal, and ``cosine`` is that share.
    """

    name: str
    sqnr_db: float
    cosine: float
    max_error: float
    equal: float | None = None


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one run: median, and the 10th and 90th percentile."""

    median_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class Validation:
    """The candidate against the reference on one target. None: could not be told (no labels, no classes, ...).

    ``sqnr_db`` and ``cosine`` are those of the worst output. ``speedup`` is the median over pairs of runs of reference
    over candidate time; ``speedup_low`` and ``speedup_high`` bound it with 95 % confidence. ``peak_memory`` is what
    loading and running a model adds to a process. ``notes`` are lines for the reader. ``integer_share`` is the share of
    the candidate's MACs that integer kernels do, ``islands`` counts its products that are float, ``conversions`` the
    steps between float and integer that are left; all three are None where nothing in it is quantized.
    """

    target: str
    samples: int
    sqnr_db: float
    cosine: float
    outputs: tuple[OutputQuality, ...]
    agreement: float | None
    accuracy: float | None
    accuracy_reference: float | None
    accuracy_top5: float | None
    accuracy_top5_reference: float | None
    latency_ms: float
    latency_reference_ms: float
    latency: Latency
    latency_reference: Latency
    speedup: float
    speedup_low: float
    speedup_high: float
    threads: int
    batch: int
    peak_memory_bytes: int | None
    peak_memory_reference_bytes: int | None
    notes: tuple[str, ...] = ()
    integer_share: float | None = None
    islands: int | None = None
    conversions: int | None = None


@dataclass(frozen=True)
class Remedy:
    """What would help, and what it costs."""

    what: str
    price: str


@dataclass(frozen=True)
class Cause:
    """Why a model answers otherwise on a target: a short name, what happens, and what would help."""

    name: str
    why: str
    remedies: tuple[Remedy, ...] = ()


@dataclass(frozen=True)
class TargetResult:
    """The candidate on one target. None: not measured, or it could not be told.

    ``status`` is "passed", "failed" or "not checked", ``why`` says so in a line. Quality is against the float original,
    which runs natively: ``sqnr_db`` of the worst output, ``agreement`` of the top answers, ``accuracy`` where there are
    labels; the same of the candidate run natively in ``native_*``. Parity is the candidate there against the candidate
    here: ``parity_db`` (infinite: equal bits), ``parity_agreement``, and ``parity_error``, the largest difference.
    Times in milliseconds of one run, original and candidate in turn, only where the target's clock means something.
    ``instructions`` are those that one run takes, those of the original in ``instructions_reference``: an estimate of
    cost, where the emulator counts. ``departure`` names the first layer whose result is another there.
    """

    target: str
    how: str
    status: TargetStatus
    why: str
    samples: int = 0
    sqnr_db: float | None = None
    native_sqnr_db: float | None = None
    agreement: float | None = None
    native_agreement: float | None = None
    accuracy: float | None = None
    native_accuracy: float | None = None
    parity_db: float | None = None
    parity_agreement: float | None = None
    parity_error: float | None = None
    latency_ms: float | None = None
    latency_reference_ms: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    instructions: int | None = None
    instructions_reference: int | None = None
    departure: str | None = None
    causes: tuple[Cause, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class LayerNoise:
    """A tensor of the original that the result has too: signal to noise in dB, scales of its channels left out."""

    tensor: str
    sqnr_db: float


@dataclass(frozen=True)
class GateResult:
    """One gate: what was demanded, what was measured, whether it holds (None: nothing to measure it on)."""

    name: str
    limit: float
    measured: float | None
    holds: bool | None
    why: str


@dataclass(frozen=True)
class Report:
    """All that a run has to say. ``notes`` are lines for the reader: order changed, data synthetic, and the like.

    ``validation`` is of this machine, ``targets`` of the processors that the model was run on besides. ``reproduce``
    are the commands that do it again, ``layers`` are in the order of the original's graph.
    """

    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    passes: tuple[StepReport, ...] = ()
    notes: tuple[str, ...] = ()
    input: FileInfo | None = None
    output: FileInfo | None = None
    validation: tuple[Validation, ...] = ()
    targets: tuple[TargetResult, ...] = ()
    gates: tuple[GateResult, ...] = ()
    layers: tuple[LayerNoise, ...] = ()
    reproduce: tuple[str, ...] = ()
    verdict: Verdict = "not judged"
