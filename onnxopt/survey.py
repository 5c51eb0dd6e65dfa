"""Looks ahead: which layers lose most by integers, and what a run of passes would do, before anything is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnxopt.core import spec
from onnxopt.core.context import Context
from onnxopt.core.manager import PassManager
from onnxopt.core.pass_ import Pass
from onnxopt.data.dataset import Dataset
from onnxopt.errors import ModelError
from onnxopt.graph import io
from onnxopt.graph.model import Model
from onnxopt.job import DataOptions, RunOptions
from onnxopt.progress import Track, silent
from onnxopt.quantization.candidate import PER_CHANNEL_OPSET, Builder, Candidate, Settings
from onnxopt.quantization.judge import Judge
from onnxopt.quantization.sensitivity import rank
from onnxopt.report.survey import DryRun, LayerDamage, Outlook, Ranking
from onnxopt.runtime.audit import is_quantized
from onnxopt.runtime.machine import machine, versions

# Samples that judge, unless there are fewer.
_SAMPLES = 64


def sensitivity(
    source: str | Path,
    *,
    data: DataOptions,
    options: RunOptions,
    track: Track = silent,
) -> Ranking:
    """Rank the layers of the model in ``source``. The data calibrates, and what is held back of it judges.

    Raises ModelError for a model of which nothing can run in integers, OnnxOptError for whatever else is wrong.
    """
    original = io.load(Path(source), options.external_root)
    if is_quantized(original):
        raise ModelError(f"{source} is quantized already; name the float model that it was made of")
    calibration, test = data.open(original)
    model = original.clone()
    PassManager([spec.make(name, {}) for name in spec.known_passes()["quant"].prepare]).run(model, calibration)
    model.upgrade(PER_CHANNEL_OPSET)
    builder = Builder(model, _context(original, data, options, track, calibration), Settings(), {})
    full = builder.build({})
    if not isinstance(full, Candidate):
        why = full[0].why if full else "it has none"
        raise ModelError(f"no layer of {source} can run in integers: {why}; onnxopt inspect tells more")
    judge = Judge(original, test, samples=_SAMPLES, threads=options.threads)
    layers = tuple(
        LayerDamage(s.layer, s.op, s.share, s.sqnr_db, s.gain_db, s.agreement, s.accuracy_drop, s.lost_ms)
        for s in rank(builder, full, judge, gains=True, track=track)
    )
    skips = tuple((s.node, s.why) for s in full.skips)
    notes = tuple(dict.fromkeys((*test.notes, *builder.notes)))
    sqnr_db = judge(full.model).sqnr_db
    return Ranking(str(source), versions(), machine(), judge.samples, sqnr_db, layers, skips, notes)


def dry_run(
    source: str | Path,
    passes: Sequence[Pass],
    *,
    data: DataOptions,
    options: RunOptions,
    track: Track = silent,
) -> DryRun:
    """What ``optimize`` would do: exact passes are tried on a copy, the others asked; nothing is calibrated or written.

    Raises OnnxOptError for whatever is wrong with the arguments or the files.
    """
    manager = PassManager(passes, keep_order=options.keep_order, stop_after=options.stop_after)
    model = io.load(Path(source), options.external_root)
    calibration, _ = data.open(model)
    found = manager.preflight(model, _context(model.clone(), data, options, track, calibration))
    outlooks = [
        Outlook(str(step), ahead is not None, ahead.changed, ahead.skips, ahead.figures, ahead.refusal)
        if ahead is not None
        else Outlook(str(step), False)
        for step, ahead in found
    ]
    lossy = [str(step) for step in manager.plan.steps if not step.exact]
    notes = (
        [f"told of the model as it is before {lossy[0]}, which changes what the others find"] if len(lossy) > 1 else []
    )
    return DryRun(str(source), tuple(outlooks), (*manager.plan.notes, *calibration.notes, *notes))


def _context(original: Model, data: DataOptions, options: RunOptions, track: Track, calibration: Dataset) -> Context:
    return Context(
        original,
        calibration,
        target=options.target,
        seed=data.seed,
        track=track,
        threads=options.threads,
        latency_batch=options.batch,
    )
