"""Does the runtime on the device read this version of the format?"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from onnxopt.deploy.finding import Finding
from onnxopt.deploy.policy import Policy
from onnxopt.deploy.subject import Subject
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
        found = list(_by_table(subject.proto, release, name))
    if release is not None and version > NEWEST.version and any(f.status == "failed" for f in found):
        found = [Finding(_NAME, "not run", f"what {name} reads is not known: it is newer than this check")]
    if wanted is not None and all(f.status != "failed" for f in found):
        found.append(_by_running(subject, wanted))
    return found


def _by_table(proto: onnx.ModelProto, release: Release, name: str) -> Iterator[Finding]:
    imports = [*proto.opset_import, *(o for f in proto.functions for o in f.opset_import)]
    highest: dict[str, int] = {}
    for opset in imports:
        domain = opset.domain or "ai.onnx"
        highest[domain] = max(highest.get(domain, 0), opset.version)
    figures = [
        (f"opset {highest[d]} of {d}", highest[d], limit)
        for d, limit in (("ai.onnx", release.opset), ("ai.onnx.ml", release.ml))
        if d in highest
    ]
    figures.append((f"IR version {proto.ir_version}", proto.ir_version, release.ir))
    bad = [f for f in figures if f[1] > f[2]]
    if not bad:
        yield Finding(_NAME, "passed", f"{name} reads {' and '.join(what for what, *_ in figures)}")
    for what, measured, limit in bad:
        remedy = f"export it with {limit} at most, or put a newer ONNX Runtime on the device"
        yield Finding(
            _NAME, "failed", f"{name} reads at most {limit}: the model has {what}", measured, limit, (), remedy
        )


def _by_running(subject: Subject, version: str) -> Finding:
    """Load it and run a sample in that very release."""
    way = find_runtime(version)
    if isinstance(way, Unavailable):
        return Finding(_NAME, "not run", f"it was not run in ONNX Runtime {version}: {way.why}", remedy=way.remedy)
    feed = next(iter(subject.dataset.batches(1, stop=1)))
    try:
        answer = way.run(Job(models=(subject.path,), feeds=[feed], keep=False))
    except ExecutionError as error:
        return Finding(_NAME, "failed", str(error), remedy="export it with an older opset, or without that operator")
    except TargetError as error:
        return Finding(_NAME, "not run", str(error))
    return Finding(_NAME, "passed", f"it loads and runs in ONNX Runtime {answer.onnxruntime}, {way.how}")
