"""Run models in a process of their own, and say what that took. Needs only onnxruntime, numpy, and Python 3.8.

    python runner.py REQUEST.json

The request (paths in it are relative to its folder):
    protocol   2
    models     paths of models that take the same feeds; none: only say what is here
    feeds      path of an .npz: "i.j" is what feed i has for the input j of ``inputs``
    inputs     names of the inputs
    count      how many feeds there are
    outputs    path of an .npz to write: "m.i.j" is what model m gives for feed i as its output j; or null
    threads    threads for one operator
    runs       how often each model runs on each feed; several models take turns
    optimize   whether ONNX Runtime may rewrite the graphs
    providers  execution providers, the most wanted first
    settings   entries of the session's configuration
    mark       whether to call getpgid(0x5EED) before and after the last run, for a counter of instructions to see
    path       folders to look for packages in, after Python's own

Prints one line of JSON. With ``ok`` true: protocol, versions of onnxruntime, numpy and python, machine, the providers
that are here and those used by each model, load_s of each model, run_s (for each model one per run), names of the
outputs of each model, sha256 of each model's outputs by name for each feed (of their type, shape and bytes), unsaved
(outputs whose type an .npz cannot hold), baseline_bytes (memory with packages and feeds loaded, but no model) and
peak_bytes; both null where the system does not tell. With ``ok`` false: ``stage`` (request, import, feeds, load, run or
outputs) and ``error``; the exit code is then 1.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import sys
import time
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when onnxruntime is imported

PROTOCOL = 2
MARK = 0x5EED


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
    """Load the models, run them, and put into the answer what that took; ``stage`` says how far it came."""
    import numpy as np
    import onnxruntime as ort

    answer.update(onnxruntime=ort.__version__, numpy=np.__version__, python=platform.python_version())
    answer.update(machine=platform.machine(), providers=ort.get_available_providers())
    if not request["models"]:
        return
    answer["stage"] = "feeds"
    with np.load(os.path.join(folder, request["feeds"]), allow_pickle=False) as arrays:
        feeds = [
            {name: arrays[f"{i}.{j}"] for j, name in enumerate(request["inputs"])} for i in range(request["count"])
        ]
    answer["stage"] = "load"
    answer["baseline_bytes"] = resident()
    answer["load_s"] = []
    sessions = []
    for model in request["models"]:
        started = time.perf_counter()
        sessions.append(load(ort, os.path.join(folder, model), request))
        answer["load_s"].append(time.perf_counter() - started)
    answer["used"] = [session.get_providers() for session in sessions]
    answer["stage"] = "run"
    found = work(sessions, feeds, request, answer)
    answer["peak_bytes"] = peak()
    answer["stage"] = "outputs"
    names = [[o.name for o in session.get_outputs()] for session in sessions]
    answer["names"] = names
    answer["sha256"] = [
        [{name: digest(np, value) for name, value in zip(of, values)} for values in each]  # noqa: B905  # 3.8 has no strict=
        for of, each in zip(names, found)  # noqa: B905
    ]
    store(np, found, request, folder, answer)


def load(ort: Any, path: str, request: dict[str, Any]) -> Any:
    """A session as the request wants it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = request["threads"]
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if request["optimize"] else level.ORT_DISABLE_ALL
    for key, value in request["settings"].items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(path, options, providers=request["providers"])


def work(sessions: list[Any], feeds: list[Any], request: dict[str, Any], answer: dict[str, Any]) -> list[list[Any]]:
    """What each model gives for each feed in its first run; the times of all runs go into the answer."""
    found: list[list[Any]] = [[] for _ in sessions]
    times: list[list[float]] = [[] for _ in sessions]
    for i, feed in enumerate(feeds):
        for turn in range(request["runs"]):
            last = request["mark"] and i == len(feeds) - 1 and turn == request["runs"] - 1
            for session, outputs, took in zip(sessions, found, times):  # noqa: B905
                mark(last)
                started = time.perf_counter()
                values = session.run(None, feed)
                took.append(time.perf_counter() - started)
                mark(last)
                if turn == 0:
                    outputs.append(values)
    answer["run_s"] = times
    return found


def mark(wanted: bool) -> None:
    """A system call that does nothing, but that an emulator can see."""
    if wanted:
        with contextlib.suppress(OSError):
            os.getpgid(MARK)


def store(np: Any, found: list[list[Any]], request: dict[str, Any], folder: str, answer: dict[str, Any]) -> None:
    """Write the outputs as an .npz, those that fit into one."""
    answer["unsaved"] = []
    if request["outputs"] is None:
        return
    arrays = {}
    for m, each in enumerate(found):
        for i, values in enumerate(each):
            for j, value in enumerate(values):
                if not isinstance(value, np.ndarray) or value.dtype.kind == "V":
                    answer["unsaved"].append(answer["names"][m][j])
                else:
                    arrays[f"{m}.{i}.{j}"] = value.astype(str) if value.dtype == object else value
    np.savez(os.path.join(folder, request["outputs"]), **arrays)


def digest(np: Any, value: Any) -> str:
    """SHA-256 of an output."""
    if not isinstance(value, np.ndarray):
        return hashlib.sha256(repr(value).encode()).hexdigest()
    text = value.dtype.kind in "OU"
    content = repr(value.tolist()).encode() if text else np.ascontiguousarray(value).tobytes()
    head = f"{'text' if text else value.dtype} {list(value.shape)}\n"
    return hashlib.sha256(head.encode() + content).hexdigest()


def resident() -> int | None:
    """Memory now, in bytes. Where the peak can be set back to it, it is."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
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
