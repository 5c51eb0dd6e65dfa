"""Does the runtime on the device read this version of the format?"""

from __future__ import annotations

import onnx

from onnxopt.deploy.finding import Finding
from onnxopt.deploy.policy import Policy
from onnxopt.deploy.subject import Subject
from onnxopt.deploy.trial import telling
from onnxopt.errors import ExecutionError, TargetError
from onnxopt.runtime import session
from onnxopt.runtime.exchange import Job
from onnxopt.runtime.releases import NEWEST, Release, find_release, parse_version
from onnxopt.targets.runtimes import find_runtime
from onnxopt.targets.way import Unavailable

_NAME = "opset"


def check_opset(subject: Subject, policy: Policy) -> list[Finding]:
    """Opsets and IR version against the release on the device, by its table and by running there.

    Without ``ort`` against the one that is installed here. Raises SpecError for what is no release.
    """
    wanted = policy.opset.ort
    version = parse_version(wanted if wanted is not None else session.__version__)
    release = find_release(version)
    name = f"ONNX Runtime {version[0]}.{version[1]}"
    if release is None:
        found = [Finding(_NAME, "not run", f"what {name} reads is not known", remedy="name a release from 1.15 on")]
    else:
        found = _by_table(subject.proto, release, name)
    if release is not None and version > NEWEST.version and any(f.status == "failed" for f in found):
        found = [Finding(_NAME, "not run", f"what {name} reads is not known: it is newer than this check")]
    if wanted is not None and all(f.status != "failed" for f in found):
        found.append(_by_running(subject, wanted))
    return found


def readable(proto: onnx.ModelProto) -> bool:
    """Does the installed release read these versions, as far as is known?"""
    release = find_release(parse_version(session.__version__))
    return release is None or all(measured <= limit for _, measured, limit in _figures(proto, release))


def _by_table(proto: onnx.ModelProto, release: Release, name: str) -> list[Finding]:
    figures = _figures(proto, release)
    remedy = "export it with {} at most, or put a newer ONNX Runtime on the device"
    found = [
        Finding(_NAME, "failed", f"{name} does not read {what}", measured, limit, (), remedy.format(limit))
        for what, measured, limit in figures
        if measured > limit
    ]
    return found or [Finding(_NAME, "passed", f"{name} reads {', '.join(what for what, *_ in figures)}")]


def _figures(proto: onnx.ModelProto, release: Release) -> list[tuple[str, int, int]]:
    """Each version that the model has, in words and as a number, and the highest that the release reads."""
    limits = {"ai.onnx": release.opset, "ai.onnx.ml": release.ml}
    highest: dict[str, int] = {}
    for opset in (*proto.opset_import, *(o for f in proto.functions for o in f.opset_import)):
        domain = opset.domain or "ai.onnx"
        highest[domain] = max(highest.get(domain, 0), opset.version)
    found = [(f"opset {highest[d]} of {d}", highest[d], limit) for d, limit in limits.items() if d in highest]
    return [*found, (f"IR version {proto.ir_version}", proto.ir_version, release.ir)]


def _by_running(subject: Subject, version: str) -> Finding:
    """Load it and run a sample in that very release."""
    way = find_runtime(version)
    if isinstance(way, Unavailable):
        return Finding(_NAME, "not run", f"it was not run in ONNX Runtime {version}: {way.why}", remedy=way.remedy)
    trial = subject.trial
    if trial.answer is None:  # tried with bounds on memory and time, which there are none of there
        return trial.instead(_NAME)[0]
    try:
        answer = way.run(Job(models=(subject.path,), feeds=[trial.feed], keep=False))
    except ExecutionError as error:
        return Finding(
            _NAME, "failed", telling(str(error)), remedy="export it with an older opset, or without that operator"
        )
    except TargetError as error:
        return Finding(_NAME, "not run", str(error))
    return Finding(_NAME, "passed", f"it loads and runs in ONNX Runtime {answer.onnxruntime}")
