"""Run a job on this machine in a clean process of its own: what it needs is then not mixed with what we need."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from onnxopt.errors import ExecutionError
from onnxopt.runtime import runner
from onnxopt.runtime.exchange import Answer, Job, answer_of, pack, unpack

# What a process may need to start at all; nothing else of the user's environment goes along.
_KEPT = ("HOME", "LD_LIBRARY_PATH", "PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR")
_SET = {"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}


def _packages() -> tuple[str, ...]:
    """Where we found what the runner needs, should Python not find it by itself there."""
    found = (find_spec(name) for name in ("numpy", "onnxruntime"))
    return tuple(sorted({str(Path(spec.origin).parents[1]) for spec in found if spec is not None and spec.origin}))


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How the runner is started: ``command`` before its path, and where it finds packages.

    ``where`` names the place in errors: "in a process of its own", "on arm64-cortex-a53".
    """

    command: tuple[str, ...] = field(default_factory=lambda: (sys.executable, "-I"))
    packages: tuple[str, ...] = field(default_factory=_packages)
    where: str = "in a process of its own"


@dataclass(frozen=True)
class Output:
    """An answer, and what the process wrote to its standard error."""

    answer: Answer
    stderr: str


def run_in_child(job: Job, launch: Launch | None = None) -> Answer:
    """Run a job in a new process.

    Raises ExecutionError when a model does not load or run, the process crashes, is killed, or takes longer than
    ``job.timeout_s``.
    """
    return call(job, launch or Launch()).answer


def call(job: Job, launch: Launch) -> Output:
    """The same, with what the process said beside its answer."""
    with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
        request = pack(job, Path(folder), [str(Path(m).resolve()) for m in job.models], launch.packages)
        done = _process([*launch.command, runner.__file__, str(request)], folder, launch, job.timeout_s)
        said = answer_of(done.stdout, done.stderr, done.returncode, launch.where)
        return Output(unpack(said, Path(folder), launch.where), done.stderr.decode("utf-8", "replace"))


def _process(
    command: Sequence[str], folder: str, launch: Launch, timeout_s: float
) -> subprocess.CompletedProcess[bytes]:
    """Run a command; it is killed when its time is over."""
    environment = {k: os.environ[k] for k in _KEPT if k in os.environ} | _SET
    try:
        return subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        raise ExecutionError(f"the model ran longer than {timeout_s:g} s {launch.where}") from None
    except OSError as error:
        raise ExecutionError(f"cannot start a process to run the model in: {error.strerror}") from error
