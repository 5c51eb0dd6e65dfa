"""The answer of a run, as values: frozen, without behaviour, ready to become text or JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

SCHEMA = "onnxopt-report-1"

Verdict: TypeAlias = Literal["accepted", "rejected", "forced", "not validated", "not judged"]


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
class GateResult:
    """One gate: what was demanded, what was measured, whether it holds (None: nothing to measure it on)."""

    name: str
    limit: float
    measured: float | None
    holds: bool | None
    why: str


@dataclass(frozen=True)
class Report:
    """All that a run has to say. ``notes`` are lines for the reader: order changed, data synthetic, and the like."""

    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    passes: tuple[StepReport, ...] = ()
    notes: tuple[str, ...] = ()
    input: FileInfo | None = None
    output: FileInfo | None = None
    validation: tuple[Validation, ...] = ()
    gates: tuple[GateResult, ...] = ()
    verdict: Verdict = "not judged"
