"""Targets as they are written: ``native``, ``x86-64-avx2``, ``raspberrypi4``, ``x86,arm64``, ``native+xnnpack``,
``ssh://pi@kitchen:22?python=/opt/venv/bin/python&threads=4``, ``ssh://[fe80::1%eth0]``."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

from onnxopt.errors import SpecError
from onnxopt.runtime.target import ALIASES, ANY, ARM64, GROUPS, NATIVE, TARGETS, Target
from onnxopt.spelling import nearest

# How the execution providers are spelled, and what ONNX Runtime calls them.
PROVIDERS = {
    "acl": "ACLExecutionProvider",
    "armnn": "ArmNNExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "dnnl": "DnnlExecutionProvider",
    "dml": "DmlExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}

# Nothing that ssh could take for an option, or expand, and nothing that a shell reads.
_DEVICE = re.compile(
    r"ssh://((?P<user>[A-Za-z0-9_][A-Za-z0-9_.+@-]*)@)?"
    r"(?P<host>[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+(%[A-Za-z0-9]+)?\])"
    r"(:(?P<port>[0-9]{1,9}))?/?(\?(?P<options>.*))?",
    re.DOTALL,
)
_FORM = "write ssh://user@host:port?python=python3&threads=1"
_OPTIONS = ("python", "threads")


@dataclass(frozen=True)
class Address:
    """A device behind ssh. ``python`` is the interpreter there, ``threads`` how many one operator may use there."""

    host: str
    user: str | None = None
    port: int | None = None
    python: str = "python3"
    threads: int | None = None

    @property
    def name(self) -> str:
        """user@host:port, as far as they are given."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")


@dataclass(frozen=True)
class Wanted:
    """A target that a model is to be run on. ``target`` is its entry in the table (that of ``native`` for a device)."""

    name: str
    target: Target
    address: Address | None = None
    provider: str | None = None

    @property
    def spelled(self) -> str:
        """As it is written, the options of a device with it: ``parse_targets`` reads it again."""
        if self.address is None:
            return self.name
        options = [] if self.address.python == Address.python else [f"python={quote(self.address.python)}"]
        options += [] if self.address.threads is None else [f"threads={self.address.threads}"]
        return "?".join(filter(None, (self.name, "&".join(options))))


def parse_targets(text: str) -> tuple[Wanted, ...]:
    """Targets, aliases and groups with commas between them, each once, in their order. Raises SpecError."""
    found: dict[str, Wanted] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        for wanted in _parse(part):
            if found.setdefault(wanted.name, wanted) != wanted:
                raise SpecError(f"the device {wanted.name} is named twice, with different options: name it once")
    if not found:
        raise SpecError("name at least one target, such as native or x86-64-avx2")
    return tuple(found.values())


def one_target(text: str) -> Wanted:
    """One target. Raises SpecError, also for several."""
    wanted = parse_targets(text)
    if len(wanted) != 1:
        raise SpecError(f"'{text}' is more than one target")
    return wanted[0]


def _parse(text: str) -> list[Wanted]:
    if text.startswith("ssh://"):
        return [_device(text)]
    if text in GROUPS:
        return [Wanted(t.name, t) for t in GROUPS[text]]
    base, plus, provider = text.partition("+")
    if plus:
        if base != NATIVE.name or provider not in PROVIDERS:
            raise SpecError(f"'{text}' is no target: write native+ and one of {', '.join(sorted(PROVIDERS))}")
        return [Wanted(text, replace(NATIVE, name=text), provider=PROVIDERS[provider])]
    name = ALIASES.get(text, text)
    runnable = {n: t for n, t in TARGETS.items() if t not in (ANY, ARM64)}
    if name not in runnable:
        raise SpecError(f"no target is named {text!r}{nearest(text, (*runnable, *ALIASES, *GROUPS))}")
    return [Wanted(name, runnable[name])]


def _device(text: str) -> Wanted:
    """Raises SpecError for an address that ssh could take for something else."""
    match = _DEVICE.fullmatch(text)
    if match is None:
        raise SpecError(f"{text!r} is no address of a device: {_FORM}")
    port = int(match["port"]) if match["port"] else None
    if port is not None and not 1 <= port <= 65535:
        raise SpecError(f"{text!r} has the port {port}: write a number from 1 to 65535")
    options = _options(text, match["options"])
    threads = options.get("threads")
    if threads is not None and not (re.fullmatch("[0-9]{1,9}", threads) and 1 <= int(threads) <= 256):
        raise SpecError(f"{text!r} has threads={threads}: write a number from 1 to 256")
    python = options.get("python", "python3")
    if not python.strip() or python.startswith("-") or not python.isprintable():
        raise SpecError(f"{text!r} has python={python!r}: name the interpreter on the device")
    address = Address(match["host"].strip("[]"), match["user"], port, python, int(threads) if threads else None)
    name = f"ssh://{address.name}"
    return Wanted(name, replace(NATIVE, name=name), address)


def _options(text: str, options: str | None) -> dict[str, str]:
    """What stands behind the question mark; %2C in it is a comma. Raises SpecError."""
    found: dict[str, str] = {}
    for part in options.split("&") if options is not None else ():
        name, equals, value = part.partition("=")
        if not equals:
            raise SpecError(f"{text!r} has an option {name!r} without a value: {_FORM}")
        if name not in _OPTIONS:
            raise SpecError(f"{text!r} has the option {name!r}, which is unknown{nearest(name, _OPTIONS)}")
        if name in found:
            raise SpecError(f"{text!r} has {name} twice: write it once")
        found[name] = unquote(value)
    return found
