"""Run one tool on one model, in a child process with limits, and keep what it said beside what it made."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SHARED = Path(__file__).parent / "peers"
_ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}


@dataclass(frozen=True)
class Tool:
    """A row: its name, its environment ("" for this one), the adapter's script, and what the adapter gets."""

    name: str
    environment: str
    adapter: str
    options: Mapping[str, Any]

    @property
    def ours(self) -> bool:
        return not self.environment

    @property
    def file_name(self) -> str:
        return "".join(c if c.isalnum() else "_" for c in self.name)


@dataclass(frozen=True)
class Limits:
    """What a tool may take for one model."""

    seconds: float
    memory_bytes: int


def make(
    command: Sequence[str | Path], options: Mapping[str, Any], model: Path, samples: Path, output: Path, limits: Limits
) -> dict[str, Any]:
    """What the adapter answered (see peers/adapter.py). A file at ``output`` is there if and only if ``ok``.

    ``command`` is the interpreter and the adapter's script.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    request = json.dumps({"options": dict(options), "memory_bytes": limits.memory_bytes})
    with tempfile.TemporaryDirectory(prefix="onnxopt-peer-") as folder:  # tools leave files where they work
        made = Path(folder) / "made" / "model.onnx"
        made.parent.mkdir()
        paths = (*command, model.resolve(), samples.resolve(), made)
        answer = _answer([*map(str, paths), request], folder, limits.seconds)
        if answer["ok"] and not made.is_file():
            answer |= {"ok": False, "error": "the tool wrote no file"}
        if answer["ok"]:
            output.write_bytes(made.read_bytes())
    return answer


def _answer(command: list[str], folder: str, seconds: float) -> dict[str, Any]:
    paths = os.pathsep.join(filter(None, (str(_SHARED), os.environ.get("PYTHONPATH"))))
    environment = os.environ | _ONE_THREAD | {"TMPDIR": folder, "PYTHONPATH": paths}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, timeout=seconds, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return {"ok": False, "error": f"not done after {seconds:.0f} s"}
    last = done.stdout.decode(errors="replace").strip().rpartition("\n")[2]
    try:
        answer: dict[str, Any] = json.loads(last)
    except json.JSONDecodeError:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
        return {"ok": False, "error": f"ended with code {done.returncode}: {said}"}
    return answer
