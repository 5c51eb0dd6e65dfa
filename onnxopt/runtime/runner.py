"""Run one model in a process of its own, and say what that took. Needs only onnxruntime, numpy, and Python 3.8.

    python runner.py REQUEST.json

The request (paths in it are relative to its folder):
    protocol  1
    model     path of the model
    feeds     path of an .npz: "arr_0" is for the first of ``inputs``, "arr_1" for the second, ...
    inputs    names of the inputs
    threads   threads for one operator
    runs      how often to run
    path      folders to look for packages in, after Python's own

Prints one line of JSON. With ``ok`` true: protocol, onnxruntime (its version), load_s, run_s (one per run), sha256 of
each output by name (of its type, shape and bytes), baseline_bytes (memory with packages and feeds loaded, but no model)
and peak_bytes; both null where the system does not tell. With ``ok`` false: ``stage`` (request, import, feeds, load
or run) and ``error``; the exit code is then 1.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when onnxruntime is imported

PROTOCOL = 1


def main(path: str) -> int:
    """Answer one request."""
    answer: dict[str, Any] = {"protocol": PROTOCOL, "ok": False, "stage": "request"}
    try:
        with open(path, encoding="utf-8") as file:
            request = json.load(file)
        if request["protocol"] != PROTOCOL:
            raise ValueError(f"this runner speaks protocol {PROTOCOL}, not {request['protocol']}")
        answer["stage"] = "import"
        sys.path.extend(request["path"])
        run(request, os.path.dirname(os.path.abspath(path)), answer)
        answer["ok"] = True
        del answer["stage"]
    except Exception as error:  # whatever it is, the other side must hear of it
        answer["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(answer))
    return 0 if answer["ok"] else 1


def run(request: dict[str, Any], folder: str, answer: dict[str, Any]) -> None:
    """Load the model, run it, and put into the answer what that took; ``stage`` says how far it came."""
    import numpy as np
    import onnxruntime as ort

    answer["onnxruntime"] = ort.__version__
    answer["stage"] = "feeds"
    with np.load(os.path.join(folder, request["feeds"]), allow_pickle=False) as arrays:
        feed = {name: arrays[f"arr_{i}"] for i, name in enumerate(request["inputs"])}
    options = ort.SessionOptions()
    options.intra_op_num_threads = request["threads"]
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    answer["stage"] = "load"
    answer["baseline_bytes"] = resident()
    started = time.perf_counter()
    session = ort.InferenceSession(os.path.join(folder, request["model"]), options, providers=["CPUExecutionProvider"])
    answer["load_s"] = time.perf_counter() - started
    answer["stage"] = "run"
    names = [o.name for o in session.get_outputs()]
    answer["run_s"] = []
    for _ in range(request["runs"]):
        started = time.perf_counter()
        values = session.run(names, feed)
        answer["run_s"].append(time.perf_counter() - started)
    answer["peak_bytes"] = peak()
    answer["sha256"] = {name: digest(np, value) for name, value in zip(names, values)}  # noqa: B905  # Python 3.8 has no strict=


def digest(np: Any, value: Any) -> str:
    """SHA-256 of an output."""
    if not isinstance(value, np.ndarray):
        return hashlib.sha256(repr(value).encode()).hexdigest()
    content = repr(value.tolist()).encode() if value.dtype == object else np.ascontiguousarray(value).tobytes()
    head = f"{value.dtype} {list(value.shape)}\n"
    return hashlib.sha256(head.encode() + content).hexdigest()


def resident() -> int | None:
    """Memory now, in bytes. Where the peak can be set back to it, it is."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass
    return status("VmRSS:") or peak()


def peak() -> int | None:
    """The most memory so far, in bytes.

    Linux's own figure for this program first: getrusage's may be that of the process that started it.
    """
    if status("VmHWM:"):
        return status("VmHWM:")
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def status(key: str) -> int | None:
    """One of the figures that Linux keeps of a process, in bytes."""
    try:
        with open("/proc/self/status") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith(key)), None)
    except OSError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
