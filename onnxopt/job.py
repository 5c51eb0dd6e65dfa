"""The whole job: load, run the passes, judge the result against the original, and save it if it holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnxopt import __version__
from onnxopt.check.common import common_inputs
from onnxopt.check.gates import Gates, evaluate, on_all
from onnxopt.check.layer_noise import layer_noise
from onnxopt.check.overflow import overflow_risk
from onnxopt.check.targets import on_targets
from onnxopt.check.validate import as_file
from onnxopt.check.validate import validate as compare
from onnxopt.core import spec
from onnxopt.core.context import Context
from onnxopt.core.manager import PassManager
from onnxopt.core.pass_ import Pass
from onnxopt.data.dataset import Dataset, open_dataset
from onnxopt.errors import ExecutionError, ModelError
from onnxopt.graph import io
from onnxopt.graph.cost import cost
from onnxopt.graph.model import Model
from onnxopt.graph.signature import TensorSpec, describe
from onnxopt.graph.vocabulary import index_bounds
from onnxopt.places import check_places
from onnxopt.progress import Track, silent
from onnxopt.report import words
from onnxopt.report.report import FileInfo, Report, Verdict
from onnxopt.reproduce import command
from onnxopt.runtime.machine import machine, versions
from onnxopt.runtime.target import ANY, NATIVE, X86_AVX2, X86_AVX512, Target
from onnxopt.targets.find import find_way
from onnxopt.targets.spec import Wanted, parse_targets
from onnxopt.targets.way import Unavailable

# Keys of the remarks that a saved model carries.
REMARK = "onnxopt."


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where feeds come from. ``data`` calibrates; ``test_data`` judges, or else a quarter of ``data`` held back.

    ``samples`` caps each of the two; ``held_out`` is the share of ``data`` that judges when there is no ``test_data``;
    ``dims`` fixes free dimensions by name.
    """

    data: str | Path | None = None
    test_data: str | Path | None = None
    preprocess: str | Path | None = None
    samples: int | None = None
    seed: int = 0
    held_out: float = 0.25
    dims: tuple[tuple[str, int], ...] = ()

    @property
    def files(self) -> tuple[str | Path | None, ...]:
        """What is read, as it is named: paths, and names that are none."""
        return self.data, self.test_data, self.preprocess

    def open(self, model: Model) -> tuple[Dataset, Dataset]:
        """(calibration, test)"""
        calibration = self.open_one(self.data, model)
        if self.test_data is not None:
            return calibration, self.open_one(self.test_data, model)
        return calibration.split(self.held_out)

    def open_one(
        self, source: str | Path | None, model: Model, inputs: tuple[TensorSpec, ...] | None = None
    ) -> Dataset:
        """The samples of one source, as the model takes them, or as ``inputs`` narrows that."""
        return open_dataset(
            source,
            model.inputs if inputs is None else inputs,
            preprocess=self.preprocess,
            samples=self.samples,
            seed=self.seed,
            dims=dict(self.dims),
            bounds=index_bounds(model),
        )


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How the passes run and the result is judged.

    ``batch`` is the one that latency is measured at; ``target`` what the model is made for: it is judged here, and
    there too where that can be run from here. ``by_layer``: compare inner tensors as well.
    """

    keep_order: bool = False
    stop_after: int | None = None
    check_each: bool = False
    validate: bool = True
    force: bool = False
    in_place: bool = False
    threads: int = 1
    batch: int = 1
    target: Target = NATIVE
    cache: Path | None = None
    external_root: Path | None = None
    by_layer: bool = False


def optimize(
    source: str | Path,
    output: str | Path,
    passes: Sequence[Pass],
    *,
    data: DataOptions = DataOptions(),  # frozen
    gates: Gates = Gates(),  # noqa: B008  # frozen
    options: RunOptions = RunOptions(),  # frozen
    track: Track = silent,
) -> Report:
    """Apply passes to the model in ``source`` and save the result as ``output`` if every gate holds.

    The verdict of the report says what happened: ``accepted`` and ``forced`` and ``not validated`` were saved,
    ``rejected`` was not. Raises OnnxOptError for whatever is wrong with the arguments or the files.
    """
    source, output = Path(source), Path(output)
    manager = PassManager(
        passes, keep_order=options.keep_order, stop_after=options.stop_after, check_each=options.check_each
    )
    check_places([source], data.files, output=output, in_place=options.in_place)
    model = io.load(source, options.external_root)
    original = model.clone()
    calibration, test = data.open(model)
    report = manager.run(
        model,
        calibration,
        target=options.target,
        threads=options.threads,
        seed=data.seed,
        cache=options.cache,
        batch=options.batch,
        track=track,
    )
    size_bytes = sum(p.stat().st_size for p in io.files_of(source))
    report = replace(
        report,
        layers=layer_noise(original, model, test, threads=options.threads) if options.by_layer else (),
        notes=tuple(dict.fromkeys((*report.notes, *test.notes))),
        input=_file_info(original, source, size_bytes, test),
        reproduce=(
            command("optimize", source, passes=spec.spell(passes), output=output, data=data, gates=gates, run=options),
        ),
        verdict="not validated",
    )
    with io.staged(model, output) as staging:
        if options.validate:
            report = _judged(
                report,
                _runnable(original, source, options),
                staging.path,
                test,
                (size_bytes, staging.size_bytes),
                gates,
                options,
                _made_for(options.target),
                track,
            )
            report = replace(report, notes=(*report.notes, *_warnings(model, options.target, report)))
        else:
            report = replace(report, notes=(*report.notes, "not validated: nothing is known of its accuracy or speed"))
        if report.verdict == "rejected":
            return report
        staging.annotate(_remarks(report, manager.plan.steps))
        info = _file_info(model, staging.path, staging.size_bytes, test)
        staging.commit()
    return replace(report, output=replace(info, path=str(output)))


def judge(
    reference: str | Path,
    candidate: str | Path,
    *,
    data: DataOptions = DataOptions(),  # frozen
    gates: Gates = Gates(),  # noqa: B008  # frozen
    options: RunOptions = RunOptions(),  # frozen
    targets: Sequence[Wanted] = (),
    required: Sequence[Wanted] = (),
    track: Track = silent,
) -> Report:
    """Compare two files; every sample of the data judges. The verdict is ``accepted`` or ``rejected``.

    This machine always judges; the candidate is then run on each of ``targets`` and ``required`` besides.

    Raises ModelError when they do not take the same inputs or the candidate lacks an output, OnnxOptError for whatever
    else is wrong with the arguments or the files.
    """
    files = Path(reference), Path(candidate)
    original, other = (io.load(f, options.external_root) for f in files)
    inputs = common_inputs(original.inputs, other.inputs)
    if inputs is None:
        raise ModelError(
            f"{candidate} takes {describe(other.inputs)}, but {reference} takes {describe(original.inputs)}"
        )
    if not {o.name for o in original.outputs} <= {o.name for o in other.outputs}:
        raise ModelError(
            f"{candidate} gives {describe(other.outputs)}, but {reference} gives {describe(original.outputs)}"
        )
    test = data.open_one(data.data, original, inputs)
    sizes = tuple(sum(p.stat().st_size for p in io.files_of(f)) for f in files)
    infos = [_file_info(m, f, s, test) for m, f, s in zip((original, other), files, sizes, strict=True)]
    where, there = (",".join(w.spelled for w in wanted) for wanted in (targets, required))
    again = command(
        "validate",
        reference,
        candidate,
        data=data,
        gates=gates,
        run=options,
        target=where or NATIVE.name,
        require_target=there or None,
    )
    report = Report(versions(), machine(), notes=test.notes, input=infos[0], output=infos[1], reproduce=(again,))
    if options.by_layer:
        report = replace(report, layers=layer_noise(original, other, test, threads=options.threads))
    return _judged(
        report,
        _runnable(original, files[0], options),
        _runnable(other, files[1], options),
        test,
        (sizes[0], sizes[1]),
        gates,
        options,
        [w for w in {w.name: w for w in (*targets, *required)}.values() if w.name != NATIVE.name],
        track,
    )


def _runnable(model: Model, path: Path, options: RunOptions) -> Model | Path:
    """What the runtime is given: the file itself, unless its weights lie where the runtime would not look."""
    return path if options.external_root is None else model


def _judged(
    report: Report,
    reference: Model | Path,
    candidate: Model | Path,
    test: Dataset,
    sizes: tuple[int, int],
    gates: Gates,
    options: RunOptions,
    wanted: Sequence[Wanted],
    track: Track,
) -> Report:
    """The report with a validation here and on other targets, what the gates say of it, and the verdict."""
    with as_file(reference) as original, as_file(candidate) as other:
        validation = compare(original, other, test, threads=options.threads, batch=options.batch, track=track)
        targets = on_targets(
            *(original, other, test, wanted, gates),
            native=validation,
            threads=options.threads,
            batch=options.batch,
            made_for=options.target,
            track=track,
        )
    results = evaluate(gates, validation, *sizes, elsewhere=_elsewhere(options.target))
    results += (on_all(targets),) if targets else ()
    holds = all(gate.holds is not False for gate in results)
    verdict: Verdict = "accepted" if holds else "forced" if options.force else "rejected"
    return replace(report, validation=(validation,), targets=targets, gates=results, verdict=verdict)


def _elsewhere(target: Target) -> bool:
    return target.name not in (NATIVE.name, ANY.name)


def _made_for(target: Target) -> list[Wanted]:
    """What a model made for that target is run on besides this machine, as far as that can be done from here."""
    if target == NATIVE:
        return []
    # What is right everywhere must be right where sums overflow; emulators are slower, and left to those who ask.
    names = f"{X86_AVX2.name},{X86_AVX512.name}" if target == ANY else target.name
    return [w for w in parse_targets(names) if not isinstance(find_way(w), Unavailable)]


def _warnings(model: Model, target: Target, report: Report) -> list[str]:
    """What to know of other processors."""
    if _elsewhere(target) and not report.targets:
        why = "; ".join(dict.fromkeys(str(find_way(w)) for w in parse_targets(target.name)))
        return [f"validated on {NATIVE.name}, not on {target.name}: {why}"]
    risk = overflow_risk(model) if target == NATIVE else ()
    if not risk:
        return []
    layers = words.many(len(risk), "layer")
    return [f"on x86 without VNNI (avx2, avx512) sums of {layers} overflow: --target any, or x86-64-avx2, guards them"]


def default_output(source: str | Path) -> Path:
    """``model.onnx`` -> ``model.opt.onnx`` beside it. Raises ModelError for a path that names no file."""
    source = Path(source)
    if not source.name:
        raise ModelError(f"'{source}' is no model: name an .onnx file")
    return source.with_name(f"{source.stem}.opt.onnx")


def _file_info(model: Model, path: Path, size_bytes: int, dataset: Dataset) -> FileInfo:
    try:
        sizes = Context(model, dataset).shapes(model)
    except ExecutionError:  # a model that this machine cannot run is counted as far as its shapes are known
        sizes = {}
    total = cost(model, sizes).total
    return FileInfo(str(path), io.sha256(path), size_bytes, total.parameters, total.macs)


def _remarks(report: Report, steps: Sequence[Pass]) -> dict[str, str]:
    """What a saved model says of itself."""
    assert report.input is not None
    remarks = {
        "version": __version__,
        "recipe": spec.spell(steps),
        "input_sha256": report.input.sha256,
        "verdict": report.verdict,
        "onnxruntime": report.versions["onnxruntime"],
    }
    for validation in report.validation:
        figures = {
            "samples": validation.samples,
            "sqnr_db": round(validation.sqnr_db, 2) if abs(validation.sqnr_db) < 1e6 else str(validation.sqnr_db),
            "agreement": validation.agreement,
            "accuracy": validation.accuracy,
            "speedup": round(validation.speedup, 2),
        }
        remarks[f"validation.{validation.target}"] = json.dumps(figures)
    if report.targets:
        remarks["targets"] = json.dumps({t.target: t.status for t in report.targets})
    return {REMARK + key: value for key, value in remarks.items()}
