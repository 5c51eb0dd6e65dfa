"""The model run for the first time: in a process of its own, with bounds on memory and time, twice on one sample.

Every check that runs the model asks this first. What goes wrong here is the failure of one check, and the reason why
the others were not run.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from onnxopt.data.sizes import concrete
from onnxopt.deploy.finding import Finding
from onnxopt.errors import ExecutionError
from onnxopt.graph.signature import Feed
from onnxopt.report import words
from onnxopt.runtime import bounded
from onnxopt.runtime.exchange import Answer, Job
from onnxopt.runtime.local import Launch, run_in_child
from onnxopt.runtime.machine import machine

if TYPE_CHECKING:
    from onnxopt.data.dataset import Dataset
    from onnxopt.deploy.subject import Subject

# The check that fails when the model does not run.
Fault: TypeAlias = Literal["operators", "memory", "latency", "edges"]

TIME_LIMIT_S = 120.0
# Of this machine's memory, so that it stays usable; and of one whose memory is not known.
_SHARE, _UNKNOWN = 0.75, 8 * 2**30
# Of a sample that are made on its way to the model.
_COPIES = 16
# ONNX Runtime's words, and Python's, for too little memory.
_MEMORY = ("Failed to allocate", "bad_alloc", "MemoryError", "would require more than", "ended by SIGKILL")


@dataclass(frozen=True)
class Trial:
    """``answer`` is None where the model does not run: ``why`` tells the reason, ``fault`` the check that fails; None
    where it is nobody's, as with inputs of types that cannot be handed on."""

    feed: Feed
    answer: Answer | None
    why: str = ""
    fault: Fault | None = None

    def ran(self) -> Answer:
        """The answer of a model that ran. Raises ExecutionError."""
        if self.answer is None:
            raise ExecutionError(self.why)
        return self.answer

    def instead(self, check: Fault | str) -> list[Finding]:
        """What a check says of a model that does not run: that it failed, if this is its fault."""
        if self.fault is None:
            return [Finding(check, "not run", f"the model cannot be tried: {self.why}")]
        if self.fault == check:
            return [Finding(check, "failed", self.why, remedy=_REMEDIES[self.fault])]
        return [Finding(check, "not run", f"the model does not run: see '{self.fault}'", because=self.fault)]


_REMEDIES: dict[Fault, str] = {
    "operators": "export it with operators and types that ONNX Runtime has kernels for",
    "memory": "look for a tensor that grows out of bounds, and for sizes that were meant to be smaller",
    "latency": "look for a loop that does not end, and for sizes that were meant to be smaller",
    "edges": "run it where it was exported; are sizes of the example input baked in?",
}


def try_out(subject: Subject) -> Trial:
    """Run the first sample twice with one thread. Raises DataError when the data cannot be read."""
    if too_large := _too_large(subject.dataset):
        return Trial({}, None, too_large, "memory")
    feed = next(iter(subject.dataset.batches(1, stop=1)))
    try:
        return Trial(feed, run_bounded((subject.path,), (feed, feed)))
    except ExecutionError as error:
        fault = _fault(subject.path, str(error))
        asks = f"it asks for more memory than the {words.size(_most())} that it may have here: "
        return Trial(feed, None, (asks if fault == "memory" else "") + telling(str(error)), fault)


def run_bounded(
    models: tuple[Path, ...], feeds: Sequence[Feed], *, threads: int = 1, runs: int = 1, keep: bool = True
) -> Answer:
    """Run models in a process that cannot take this machine down. Raises ExecutionError."""
    launch = Launch(command=(sys.executable, "-I", bounded.__file__, str(_most())))
    job = Job(models=models, feeds=feeds, threads=threads, runs=runs, keep=keep, timeout_s=TIME_LIMIT_S)
    return run_in_child(job, launch)


def telling(why: str) -> str:
    """A message without ONNX Runtime's numbers of errors and places in its source."""
    why = re.sub(r"\w+: \[ONNXRuntimeError\] : \d+ : \w+ : ", "", why)
    why = re.sub(r"/onnxruntime_src/.*?\) |/onnxruntime_src/.*", "", why)
    return re.sub(r"Non-zero .* running (\w+) node\. Name:('[^']*') Status Message: ?", r"\1 \2 ", why).strip()


def _too_large(dataset: Dataset) -> str:
    """Why no sample can be made up for the inputs; "" if one can."""
    if not dataset.synthetic:
        return ""
    for spec, shape in zip(dataset.inputs, concrete(dataset.inputs).values(), strict=True):
        if (size := math.prod(shape) * spec.dtype.itemsize) > _most() // _COPIES:
            return f"a sample of its input '{spec.name}' takes {words.size(size)}"
    return ""


def _most() -> int:
    """Bytes that a process may have."""
    return int(_SHARE * int(machine()["memory_bytes"] or _UNKNOWN))  # type: ignore[arg-type]  # it is an int or None


def fault_of(why: str) -> Fault:
    """Which check fails, from how a process says that it failed."""
    if any(word in why for word in _MEMORY):
        return "memory"
    if "ran longer than" in why:
        return "latency"
    return "operators" if "failed to load" in why else "edges"


def _fault(path: Path, why: str) -> Fault | None:
    """The same of a trial. What ends a process at once is the fault of operators if it does so without any feed."""
    if "cannot be handed" in why:
        return None
    fault = fault_of(why)
    if fault == "edges" and "was ended by" in why:
        try:
            run_bounded((path,), (), keep=False)
        except ExecutionError:
            return "operators"
    return fault
