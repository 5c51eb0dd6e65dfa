"""What is asked of the runner, wherever it runs, and what it answers."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.errors import ExecutionError, TargetError
from onnxopt.graph.signature import Array, Feed
from onnxopt.runtime import runner

# Idle workers would spin on after a run, and make another session beside this one up to three times slower.
_SETTINGS = {"session.force_spinning_stop": "1"}
# Of what another process says: ONNX Runtime puts places in its own source before what is wrong.
_LONGEST_REASON = 1000


@dataclass(frozen=True, kw_only=True)
class Job:
    """Models that take the same feeds, to be run in a process of their own.

    Every model runs ``runs`` times on every feed, several in turn. ``keep``: bring the outputs back, not only their
    digests. ``optimize`` False runs the graphs as they are written. ``settings`` are entries of the session's
    configuration. ``mark``: make system calls around the last run that a counter of instructions sees.
    """

    models: tuple[Path, ...]
    feeds: Sequence[Feed]
    threads: int = 1
    runs: int = 1
    keep: bool = True
    optimize: bool = True
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    settings: Mapping[str, str] = field(default_factory=dict)
    mark: bool = False
    timeout_s: float = 120


@dataclass(frozen=True)
class Run:
    """One model in a process of its own: seconds, what it gave for each feed by name, and SHA-256 of that by name.

    ``outputs`` are empty where they were not kept. ``providers`` are those that the session used.
    """

    load_s: float
    run_s: tuple[float, ...]
    outputs: tuple[dict[str, Array], ...]
    sha256: tuple[Mapping[str, str], ...]
    providers: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What a process says of a job. ``machine`` is its architecture, ``providers`` all that its ONNX Runtime has.

    ``memory_bytes`` is what loading and running the models added at most to the process, ``peak_bytes`` all that the
    process held; None where the system does not tell. ``unsaved`` are outputs that cannot be brought back.
    """

    onnxruntime: str
    numpy: str
    python: str
    machine: str
    providers: tuple[str, ...]
    runs: tuple[Run, ...]
    memory_bytes: int | None
    peak_bytes: int | None
    unsaved: tuple[str, ...]


def pack(job: Job, folder: Path, models: Sequence[str], packages: Sequence[str]) -> Path:
    """Write the request and the feeds into a folder; returns the request's path.

    ``models`` are the paths that the runner will find the models at, absolute or relative to the folder; ``packages``
    folders for it to look for packages in. Raises ExecutionError for feeds of a type that cannot be handed on.
    """
    inputs = list(job.feeds[0]) if job.feeds else []
    arrays = {f"{i}.{j}": _plain(feed[name], name) for i, feed in enumerate(job.feeds) for j, name in enumerate(inputs)}
    np.savez(folder / "feeds.npz", **arrays)  # type: ignore[arg-type]  # its stub confuses arrays with allow_pickle
    request = {
        "protocol": runner.PROTOCOL,
        "models": list(models),
        "feeds": "feeds.npz",
        "inputs": inputs,
        "count": len(job.feeds),
        "outputs": "outputs.npz" if job.keep else None,
        "threads": job.threads,
        "runs": job.runs,
        "optimize": job.optimize,
        "providers": list(job.providers),
        "settings": _SETTINGS | dict(job.settings),
        "mark": job.mark,
        "path": list(packages),
    }
    path = folder / "request.json"
    path.write_text(json.dumps(request), encoding="utf-8")
    return path


def answer_of(stdout: bytes, stderr: bytes, code: int, where: str) -> dict[str, Any]:
    """The runner's answer from what its process left: a negative exit code is the signal that ended it.

    ``where`` continues "the process that ran the model", such as "on arm64-cortex-a53". Raises ExecutionError when it
    crashed, gave no answer, or says that the job failed; TargetError when packages are missing there.
    """
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = "; is there enough memory?" if name == "SIGKILL" else ""
        raise ExecutionError(f"the process that ran the model {where} was ended by {name}{hint}")
    lines = stdout.decode("utf-8", "replace").splitlines()
    try:
        answer = json.loads(lines[-1])
        failed = not answer["ok"]
    except (IndexError, ValueError, TypeError, KeyError):
        said = stderr.decode("utf-8", "replace").strip().splitlines()
        reason = said[-1][:200] if said else f"exit code {code}"
        raise ExecutionError(f"the process that ran the model {where} gave no answer: {reason}") from None
    if failed:
        reason = " ".join(str(answer.get("error", "")).split())[:_LONGEST_REASON]
        if answer.get("stage") == "import":
            raise TargetError(
                f"Python {where} lacks what the runner needs: {reason}; run 'pip install onnxruntime numpy' there"
            )
        raise ExecutionError(f"the model failed to {answer.get('stage')} {where}: {reason}")
    return dict(answer)


def unpack(said: Mapping[str, Any], folder: Path, where: str) -> Answer:
    """The answer with the outputs that lie beside it. Raises ExecutionError when they are not what the answer says."""
    try:
        runs = _runs(said, folder)
        peak, baseline = said.get("peak_bytes"), said.get("baseline_bytes")
        return Answer(
            str(said["onnxruntime"]),
            str(said["numpy"]),
            str(said["python"]),
            str(said["machine"]),
            tuple(map(str, said["providers"])),
            runs,
            None if peak is None or baseline is None else max(peak - baseline, 0),
            peak,
            tuple(dict.fromkeys(map(str, said.get("unsaved", ())))),
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise ExecutionError(f"what came back from the process {where} is damaged: {error}") from error


def _runs(said: Mapping[str, Any], folder: Path) -> tuple[Run, ...]:
    found = []
    file = folder / "outputs.npz"
    arrays = _arrays(file) if file.exists() else {}
    for m, names in enumerate(said.get("names", ())):
        sums = said["sha256"][m]
        outputs = [
            {name: arrays[f"{m}.{i}.{j}"] for j, name in enumerate(names) if f"{m}.{i}.{j}" in arrays}
            for i in range(len(sums))
        ]
        for i, values in enumerate(outputs):
            wrong = next((n for n, v in values.items() if runner.digest(np, v) != sums[i][n]), None)
            if wrong is not None:
                raise ValueError(f"the output '{wrong}' is not what its SHA-256 says")
            lost = [name for name in names if file.exists() and name not in {*values, *said.get("unsaved", ())}]
            if lost:
                raise ValueError(f"the output '{lost[0]}' is missing")
        found.append(
            Run(
                float(said["load_s"][m]),
                tuple(map(float, said["run_s"][m])),
                tuple(outputs) if arrays else (),
                tuple(sums),
                tuple(said["used"][m]),
            )
        )
    return tuple(found)


def _arrays(file: Path) -> dict[str, Array]:
    """Raises ValueError for what is no whole .npz."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # damaged files make numpy, zipfile, zlib and even tokenize raise what is their own
        raise ValueError(f"the outputs cannot be read: {error}") from error


def _plain(value: Array, name: str) -> Array:
    """As an .npz without pickles can hold it. Raises ExecutionError for types that numpy alone does not know."""
    if value.dtype == object:
        return value.astype(str)
    if value.dtype.kind == "V":
        raise ExecutionError(f"the input '{name}' of type {value.dtype} cannot be handed to another process")
    return value
