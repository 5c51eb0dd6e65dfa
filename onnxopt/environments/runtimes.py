"""Other versions of ONNX Runtime for this processor, each in a folder of its own.

site/      ONNX Runtime and a numpy that it works with
environment.json
    onnxruntime, numpy   versions in site
    python               the version of Python that it is for
    packages             name, version and sha256 of what was fetched
    made                 the version of onnxopt
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from onnxopt.environments import wheels
from onnxopt.environments.source import Source
from onnxopt.environments.staging import alone, put, scratch
from onnxopt.errors import ExecutionError, TargetError
from onnxopt.progress import Track
from onnxopt.runtime.exchange import Job
from onnxopt.targets.folders import cache_folder
from onnxopt.targets.runtimes import OtherRuntime, find_runtime, parse_version, python_version, runtime_folder

# Earlier versions were built against numpy 1, and crash with its successor, without saying so in their metadata.
_FIRST_WITH_NUMPY_2 = (1, 19)
HERE = "here"


def requirements(wanted: str) -> tuple[str, str]:
    """What pip is to fetch for ``1.16`` or ``1.16.3``."""
    major, minor, *patch = wanted.split(".")
    exact = wanted if patch else f"{wanted}.*"
    return f"onnxruntime=={exact}", "numpy" if (int(major), int(minor)) >= _FIRST_WITH_NUMPY_2 else "numpy<2"


def plan(wanted: str, source: Source) -> list[str]:
    """What would be fetched from where, in lines. Nothing is fetched."""
    what, place = " and ".join(requirements(parse_version(wanted))), cache_folder("targets")
    return [
        f"into {place}, about 80 MB:",
        f"from {source.wheels_from(HERE)}: {what}, about 30 MB",
    ]


def set_up(wanted: str, source: Source, say: Callable[[str], None], track: Track) -> str:
    """Fetch a version and try it; one line about it. What is there already is left alone, unless files are to be kept.

    Raises TargetError; nothing is changed then.
    """
    parent = cache_folder("targets")
    with alone(parent, say):
        there = find_runtime(wanted)
        if isinstance(there, OtherRuntime) and source.keep is None:
            return f"it is set up already: ONNX Runtime {there.version} in {there.folder}"
        for line in plan(wanted, source):
            say(line)
        with scratch(parent) as new:
            made = _make(new, wanted, source, track)
            put(new, runtime_folder(made))
    return f"set up: ONNX Runtime {made} in {runtime_folder(made)}"


def _make(new: Path, wanted: str, source: Source, track: Track) -> str:
    """Fill a folder; the version that is in it."""
    ready = source.wheels(new, HERE)
    packages = requirements(wanted)
    for _ in track(range(1), "Fetch and install Python packages"):
        if source.offline is None:
            wheels.download(packages, ready)
        wheels.install(packages, ready, new / "site")
    versions = wheels.installed(new / "site")
    sums = wheels.sums(ready, versions)
    wheels.trim(new / "site")
    shutil.rmtree(new / "wheels", ignore_errors=True)
    try:
        OtherRuntime(versions["onnxruntime"], new).run(Job(models=(), feeds=()))
    except (ExecutionError, TargetError) as error:
        raise TargetError(f"ONNX Runtime {versions['onnxruntime']} does not work here: {error}") from error
    made = {
        "onnxruntime": versions["onnxruntime"],
        "numpy": versions["numpy"],
        "python": python_version(),
        "packages": [{"name": n, "version": v, "sha256": sums.get(n)} for n, v in sorted(versions.items())],
        "made": version("onnxopt"),
    }
    (new / "environment.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return versions["onnxruntime"]
