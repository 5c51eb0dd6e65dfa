"""Run a model on this machine in a clean process of its own: what it needs is then not mixed with what we need."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.errors import ExecutionError
from onnxopt.graph.signature import Array, Feed
from onnxopt.runtime import runner

# What a process may need to start at all; nothing else of the user's environment goes along.
_KEPT = ("HOME", "LD_LIBRARY_PATH", "PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR")
_SET = {"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}


@dataclass(frozen=True)
class ChildRun:
    """A run in a process of its own. Times in seconds; ``sha256`` of each output by name.

    ``memory_bytes`` is what loading and running the model added at most to the process, ``peak_bytes`` all that the
    process held; None where the system does not tell.
    """

    load_s: float
    run_s: tuple[float, ...]
    sha256: Mapping[str, str]
    memory_bytes: int | None
    peak_bytes: int | None


def run_in_child(model: str | Path, feed: Feed, *, threads: int = 1, runs: int = 1, timeout_s: float = 120) -> ChildRun:
    """Load a model file in a new process and run it on a feed.

    Raises ExecutionError when it does not load or run, crashes, is killed, or takes longer than ``timeout_s``.
    """
    with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
        arrays = [_plain(value, name) for name, value in feed.items()]
        np.savez(Path(folder) / "feeds.npz", *arrays)
        request = {
            "protocol": runner.PROTOCOL,
            "model": str(Path(model).resolve()),
            "feeds": "feeds.npz",
            "inputs": list(feed),
            "threads": threads,
            "runs": runs,
            "path": _packages(),
        }
        file = Path(folder) / "request.json"
        file.write_text(json.dumps(request), encoding="utf-8")
        answer = _call([sys.executable, "-I", runner.__file__, str(file)], folder, timeout_s)
    peak, baseline = answer["peak_bytes"], answer["baseline_bytes"]
    memory = None if peak is None or baseline is None else max(peak - baseline, 0)
    return ChildRun(answer["load_s"], tuple(answer["run_s"]), answer["sha256"], memory, peak)


def _call(command: list[str], folder: str, timeout_s: float) -> dict[str, Any]:
    """The answer of the runner. It is killed when its time is over."""
    environment = {k: os.environ[k] for k in _KEPT if k in os.environ} | _SET
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        raise ExecutionError(f"the model ran longer than {timeout_s:g} s in a process of its own") from None
    except OSError as error:
        raise ExecutionError(f"cannot start a process to run the model in: {error.strerror}") from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        hint = "; is there enough memory?" if name == "SIGKILL" else ""
        raise ExecutionError(f"the process that ran the model was ended by {name}{hint}")
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    try:
        answer = json.loads(lines[-1])
        failed = not answer["ok"]
    except (IndexError, ValueError, TypeError, KeyError):
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = said[-1][:200] if said else f"exit code {done.returncode}"
        raise ExecutionError(f"the process that ran the model gave no answer: {reason}") from None
    if failed:
        reason = " ".join(str(answer.get("error", "")).split())[:300]
        raise ExecutionError(f"the model failed to {answer.get('stage')} in a process of its own: {reason}")
    return dict(answer)


def _packages() -> list[str]:
    """Where we found what the runner needs, should Python not find it by itself there."""
    found = (find_spec(name) for name in ("numpy", "onnxruntime"))
    return sorted({str(Path(spec.origin).parents[1]) for spec in found if spec is not None and spec.origin})


def _plain(value: Array, name: str) -> Array:
    """As an .npz without pickles can hold it. Raises ExecutionError for types that numpy alone does not know."""
    if value.dtype == object:
        return value.astype(str)
    if value.dtype.kind == "V":
        raise ExecutionError(f"the input '{name}' of type {value.dtype} cannot be handed to another process")
    return value
