"""Is there a kernel for every operator and type?"""

from __future__ import annotations

import itertools
import re

from onnxopt.deploy.finding import Finding
from onnxopt.deploy.opset import readable
from onnxopt.deploy.policy import Policy
from onnxopt.deploy.subject import Subject
from onnxopt.deploy.trial import fault_of, run_bounded, telling
from onnxopt.errors import ExecutionError
from onnxopt.report import words
from onnxopt.runtime import session
from onnxopt.runtime.exchange import Job
from onnxopt.runtime.local import run_in_child
from onnxopt.targets.spec import PROVIDERS

_NAME = "operators"
_CPU = "CPUExecutionProvider"
# Refuse a session in which a node would be left to the CPU.
_ALONE = {"session.disable_cpu_ep_fallback": "1"}
# How ONNX Runtime names the node that it cannot take.
_NODES = (r"node with name '([^']*)'", r"[Nn]ode(?: name)?:? ?\(([^)]+)\)", r"Node:(\S+)", r"name: (\S+)")
_UNKNOWN = re.compile(r"([\w.]+):(\w+)\(-?\d+\) is not a registered")
_SHOWN = 20


def check_operators(subject: Subject, policy: Policy) -> list[Finding]:
    """No operator that is forbidden, and a session with each provider alone that takes all nodes."""
    found = [_forbidden(subject, policy)] if policy.operators.forbid else []
    return found + [_runs(subject, name) for name in policy.operators.providers]


def _forbidden(subject: Subject, policy: Policy) -> Finding:
    forbidden = set(policy.operators.forbid)
    nodes = [(n, f"{n.domain}:{n.op}" if not n.is_standard else n.op) for g in subject.model.graphs() for n in g.nodes]
    bad = [(node, op) for node, op in nodes if op in forbidden]
    names = ", ".join(sorted(forbidden))
    if not bad:
        return Finding(_NAME, "passed", f"none of the forbidden operators: {names}", 0, 0)
    which = ", ".join(sorted({op for _, op in bad}))
    places = tuple(node.name or op for node, op in bad[:_SHOWN])
    why = f"{words.many(len(bad), 'node')} of a forbidden operator: {which}"
    return Finding(_NAME, "failed", why, len(bad), 0, places)


def _runs(subject: Subject, name: str) -> Finding:
    provider = _CPU if name == "cpu" else PROVIDERS[name]
    if provider not in session.providers():
        why = f"the installed ONNX Runtime {session.__version__} has no {provider}"
        return Finding(_NAME, "not run", why, remedy="install a build that has it")
    try:
        _load(subject, provider)
    except ExecutionError as error:
        return _refused(subject, provider, telling(str(error)))
    return Finding(_NAME, "passed", f"{provider} of ONNX Runtime {session.__version__} runs every node")


def _load(subject: Subject, provider: str) -> None:
    if provider == _CPU:
        run_bounded((subject.path,), (), keep=False)
    else:  # drivers reserve more addresses than there is memory: no bounds
        run_in_child(Job(models=(subject.path,), feeds=(), keep=False, providers=(provider,), settings=_ALONE))


def _refused(subject: Subject, provider: str, why: str) -> Finding:
    if not readable(subject.proto):
        why = f"ONNX Runtime {session.__version__} does not read it: see 'opset'"
        return Finding(_NAME, "not run", why, because="opset")
    fault = fault_of(why)
    if fault in ("memory", "latency"):
        return Finding(_NAME, "not run", f"the model cannot be loaded: see '{fault}'", because=fault)
    why = f"{provider} cannot run the model alone: {why}"
    return Finding(_NAME, "failed", why, places=_places(subject, why), remedy=_remedy(provider))


def _places(subject: Subject, why: str) -> tuple[str, ...]:
    """The nodes that the message is about, as far as it tells."""
    unknown = _UNKNOWN.search(why)
    if unknown is not None:
        nodes = (n for g in subject.model.graphs() for n in g.nodes if (n.domain, n.op) == unknown.groups())
        return tuple(n.name or n.op for n in itertools.islice(nodes, _SHOWN))
    found = (match for pattern in _NODES for match in re.findall(pattern, why) if match)
    return tuple(itertools.islice(found, 1))


def _remedy(provider: str) -> str:
    if provider == _CPU:
        return "export it with operators and types that ONNX Runtime knows, or ship the library that has them"
    return f"leave what {provider} cannot do to another provider, and time it so"
