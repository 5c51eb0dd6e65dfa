"""Run passes over a model: in a right order, each one verified and timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxopt.core import spec
from onnxopt.core.context import Context
from onnxopt.core.pass_ import Pass, PassResult, Preflight
from onnxopt.core.reference import Reference
from onnxopt.data.cache import Cache
from onnxopt.data.dataset import Dataset, open_dataset
from onnxopt.errors import OnnxOptError, PassError, SpecError
from onnxopt.graph.model import Model
from onnxopt.graph.verify import boundary, faults
from onnxopt.graph.vocabulary import index_bounds
from onnxopt.progress import Track, silent
from onnxopt.report.report import Report, StepReport
from onnxopt.runtime.machine import machine, versions
from onnxopt.runtime.target import NATIVE, Target


@dataclass(frozen=True)
class Plan:
    """The steps in the order they will run, and lines for the report where that is not what was asked for."""

    steps: tuple[Pass, ...]
    notes: tuple[str, ...]


def plan(passes: Sequence[Pass], *, keep_order: bool = False, stop_after: int | None = None) -> Plan:
    """Order passes by what each declares in ``after``, put in what they need first, and cut after ``stop_after`` steps.

    ``keep_order`` leaves the user's order; what a pass needs is then put right before it.
    """
    names = [p.name for p in passes]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise SpecError(f"the pass '{twice[0]}' is named twice; run onnxopt a second time for a second round")
    wanted = _with_preparation(passes)
    ordered = wanted if keep_order else _sorted(wanted)
    notes = []
    for added in [p for p in wanted if p.name not in names]:
        needed_by = [p.name for p in passes if added.name in _all_preparation(p.needs())]
        notes.append(f"added {added.name}, needed first by {' and '.join(needed_by)}")
    now = [p.name for p in ordered if p.name in names]
    if now != names:
        notes.append(f"order changed from {','.join(names)} to {','.join(now)}: --keep-order keeps yours")
    if stop_after is not None and stop_after < len(ordered):
        notes.append(f"stopped after step {stop_after} of {len(ordered)}; not run: {spec.spell(ordered[stop_after:])}")
        ordered = ordered[:stop_after]
    return Plan(tuple(ordered), tuple(notes))


class PassManager:
    """Runs passes. ``check_each`` also compares the model before and after each step on one sample."""

    def __init__(
        self,
        passes: Sequence[Pass],
        *,
        keep_order: bool = False,
        stop_after: int | None = None,
        check_each: bool = False,
    ) -> None:
        self.plan = plan(passes, keep_order=keep_order, stop_after=stop_after)
        self._check_each = check_each

    def run(
        self,
        model: Model,
        dataset: Dataset | str | Path | None = None,
        *,
        target: Target = NATIVE,
        threads: int = 1,
        seed: int = 0,
        cache: str | Path | None = None,
        batch: int = 1,
        track: Track = silent,
    ) -> Report:
        """Change the model in place, pass by pass; the report has one step for each.

        ``dataset`` calibrates: a Dataset, or whatever ``open_dataset`` takes (None: synthetic). ``cache`` is a folder
        in which calibration is kept; ``batch`` how many samples the model will mostly be run with. Raises PassError
        when a pass left a graph that is not whole, or an exact pass changed results.
        """
        if not isinstance(dataset, Dataset):
            dataset = open_dataset(dataset, model.inputs, seed=seed, bounds=index_bounds(model))
        context = Context(
            model.clone(),
            dataset,
            target=target,
            seed=seed,
            track=track,
            threads=threads,
            cache=Cache(cache) if cache is not None else None,
            latency_batch=batch,
        )
        known = faults(model)
        steps = tuple(self._step(step, model, context, known) for step in self.plan.steps)
        doubts = [f"the original is not valid ONNX, though a runtime may take it: {fault}" for fault in known]
        done = zip(self.plan.steps, steps, strict=True)
        idle = [f"{r.spec} changed nothing: {_why_not(r)}" for p, r in done if not p.exact and not r.changed]
        return Report(versions(), machine(), steps, (*self.plan.notes, *doubts, *dataset.notes, *idle))

    def preflight(self, model: Model, context: Context) -> tuple[tuple[Pass, Preflight | None], ...]:
        """What each pass would do, without long work. Exact passes change the model in place, so that those behind them
        tell of what they would find; the others leave it alone."""
        found: list[tuple[Pass, Preflight | None]] = []
        for step in self.plan.steps:
            if step.exact:
                result = self._step(step, model, context, faults(model))
                found.append((step, Preflight(result.changed)))
            else:
                found.append((step, step.preflight(model, context)))
        return tuple(found)

    def _step(self, step: Pass, model: Model, context: Context, known: Sequence[str]) -> StepReport:
        expected = boundary(model)
        before = Reference(model, context) if self._check_each else None
        started = time.perf_counter()
        result = _guarded(step, model, context)
        if result.changed:
            model.tidy()
        seconds = time.perf_counter() - started
        if broken := [fault for fault in faults(model, expected) if fault not in known]:
            raise PassError(f"the pass {step} left a broken graph: {broken[0]}; leave it out, and report it as a bug")
        model.release()
        figures = dict(result.figures)
        if before is not None:
            figures["check"] = before.compare(model, str(step), step.exact)
        return StepReport(str(step), seconds, result.changed, tuple((s.node, s.why) for s in result.skips), figures)


def _guarded(step: Pass, model: Model, context: Context) -> PassResult:
    try:
        return step.run(model, context)
    except (OnnxOptError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # whatever a pass stumbles over is the pass's fault, not a traceback for the user
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = f"{where.tb_frame.f_code.co_filename.rpartition('/')[2]}:{where.tb_lineno}" if where else "?"
        text = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise PassError(f"the pass {step} failed at {place} ({text}); leave it out, and report it as a bug") from error


def _why_not(step: StepReport) -> str:
    """What was said of the model as a whole, or of most of the places that were left alone."""
    if whole := [why for node, why in step.skips if node == "model"]:
        return "; ".join(dict.fromkeys(whole))
    whys = [why for _, why in step.skips]
    if not whys:
        return "it found no place for it"
    most = max(whys, key=whys.count)
    return most if whys.count(most) == len(whys) else f"{most} ({whys.count(most)} of {len(whys)} places left alone)"


def _with_preparation(passes: Sequence[Pass]) -> list[Pass]:
    """The passes, each with what it needs put before it where the user did not name it."""
    result: list[Pass] = []
    named = {p.name for p in passes}
    for step in passes:
        for name in _all_preparation(step.needs()):
            if name not in named:
                result.append(spec.make(name, {}))
                named.add(name)
        result.append(step)
    return result


def _all_preparation(needed: Sequence[str]) -> list[str]:
    """These passes, and before each those that it needs first in turn."""
    known = spec.known_passes()
    found: list[str] = []
    for name in needed:
        found += [n for n in (*_all_preparation(known[name].prepare), name) if n not in found]
    return found


def _sorted(passes: Sequence[Pass]) -> list[Pass]:
    """Stable: of the passes whose predecessors are done, the one that stands first comes next."""
    left, done, earlier = list(passes), [], _predecessors(passes)
    while left:
        names = {p.name for p in left}
        step = next((p for p in left if not names & earlier[p.name]), None)
        if step is None:
            raise SpecError(f"the passes {', '.join(sorted(names))} each ask to run after another; use --keep-order")
        left.remove(step)
        done.append(step)
    return done


def _predecessors(passes: Sequence[Pass]) -> dict[str, set[str]]:
    """The passes that come before each, by name, those included that come before these: also where the ones between
    are not in the run. What one of them needs comes before it, whatever that declares in ``after``."""
    kinds = {**spec.known_passes(), **{p.name: type(p) for p in passes}}
    own = {p.name: p.needs() for p in passes}
    needs = {name: set(_all_preparation(own.get(name, kind.prepare))) for name, kind in kinds.items()}
    direct = {
        name: needs[name] | {n for n in kind.after if name not in needs.get(n, ())} for name, kind in kinds.items()
    }
    found = {}
    for name in own:
        seen: set[str] = set()
        stack = [name]
        while stack:
            new = direct.get(stack.pop(), set()) - seen
            seen |= new
            stack += new
        found[name] = seen - {name}
    return found
