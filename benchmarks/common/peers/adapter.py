"""What the adapters share: reading the request, the samples as the tool's users feed them, one thread, and the report.

    python use_TOOL.py MODEL SAMPLES.npz OUTPUT OPTIONS

OPTIONS is JSON. The last line printed is JSON: ``ok``, ``seconds`` and ``peak_bytes`` of the tool's own work (imports
not counted in the seconds), ``versions``, ``notes``, and what else the adapter has to tell; or ``error``, one line.
Needs Python 3.10, numpy, onnx and onnxruntime.
"""

from __future__ import annotations

import inspect
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime

Feed = dict[str, np.ndarray]
_PER_CHANNEL_OPSET = 13


class Request:
    """One model to work on.

    ``source`` is its path; ``model`` as well, but upgraded to an opset that knows scales per channel where it is older.
    ``samples`` is the file of calibration samples; ``options`` are the row's; ``notes`` and ``figures`` end up in the
    answer.
    """

    def __init__(self, model: Path, samples: Path, output: Path, options: dict[str, Any]) -> None:
        self.source, self.samples, self.output = model, samples, output
        self.options = options
        self.notes: list[str] = []
        self.figures: dict[str, float] = {}
        with np.load(samples, allow_pickle=False) as arrays:
            self._arrays = {name: arrays[name] for name in arrays.files if name != "labels"}
        graph = onnx.load(model, load_external_data=False).graph
        shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input}
        self._whole = any(array.ndim > len(shapes[name]) for name, array in self._arrays.items())
        free = all(shapes[name][0] < 1 for name in self._arrays)
        self._batch = options.get("batch", 1) if free and not self._whole else 1

    def feeds(self) -> Iterator[Feed]:
        """The samples: one at a time, or ``batch`` of them where the row says so and the model takes them."""
        count = len(next(iter(self._arrays.values())))
        for start in range(0, count, self._batch):
            chosen = start if self._whole else slice(start, start + self._batch)
            yield {name: np.ascontiguousarray(array[chosen]) for name, array in self._arrays.items()}

    @cached_property
    def model(self) -> Path:
        path = self.source
        model = onnx.load(path)
        opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        if opset >= _PER_CHANNEL_OPSET:
            return path
        try:
            model = onnx.version_converter.convert_version(model, _PER_CHANNEL_OPSET)
        except Exception as error:  # whatever it is, the tool then gets the model as it was
            self.notes.append(f"opset {opset} not upgraded: {first_line(error)}")
            return path
        self.notes.append(f"opset {opset} upgraded to {_PER_CHANNEL_OPSET} before")
        onnx.save(model, "upgraded.onnx")
        return Path("upgraded.onnx")


class Reader:
    """The samples as onnxruntime.quantization takes them; may be gone through again."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.rewind()

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)

    def rewind(self) -> None:
        self._feeds = self._request.feeds()

    def get_first(self) -> Feed:
        return next(self._request.feeds())

    def __len__(self) -> int:
        return sum(1 for _ in self._request.feeds())


def run(work: Callable[[Request], None], package: str) -> None:
    """Do what the command line asks with a tool, and report. The tool must write to ``request.output``."""
    model, samples, output, options = sys.argv[1:]
    answer: dict[str, Any] = {"ok": False, "versions": _versions(package)}
    _one_thread()
    request = None
    try:
        limits = json.loads(options)
        resource.setrlimit(resource.RLIMIT_AS, (limits["memory_bytes"], limits["memory_bytes"]))
        request = Request(Path(model), Path(samples), Path(output), limits["options"])
        answer["start_bytes"] = _peak_bytes()
        started = time.perf_counter()
        work(request)
        answer["seconds"] = time.perf_counter() - started
        answer |= request.figures
        answer["ok"] = True
    except BaseException as error:  # tools also call sys.exit
        answer["error"] = first_line(error)
    answer["peak_bytes"] = _peak_bytes()
    answer["notes"] = request.notes if request else []
    print("\n" + json.dumps(answer), flush=True)
    os._exit(0)  # some tools leave threads or fail while they shut down


def first_line(error: BaseException) -> str:
    """Type and first line of a message, cut to a length that a table can hold."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _one_thread() -> None:
    """Every session of the tool, too, computes in one thread."""
    session = onnxruntime.InferenceSession
    plain = session.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(plain).bind(self, *args, **kwargs)
        options = given.arguments.get("sess_options") or onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        given.arguments["sess_options"] = options
        plain(*given.args, **given.kwargs)

    session.__init__ = init


def _versions(package: str) -> dict[str, str]:
    found = {}
    for name in dict.fromkeys((package, "onnxruntime", "onnx", "numpy", "torch")):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _peak_bytes() -> int:
    with open("/proc/self/status", encoding="utf-8") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
