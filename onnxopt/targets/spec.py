"""Targets as they are written: ``native``, ``x86-64-avx2``, ``raspberrypi4``, ``x86,arm64``, ``native+xnnpack``,
``ssh://pi@kitchen:22?python=/opt/venv/bin/python&threads=4``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, unquote, urlsplit

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

# No host and no user has these, and a shell would read them.
_UNSAFE = set(" '\"\\$`;&|<>")


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
        return (f"{self.user}@" if self.user else "") + self.host + (f":{self.port}" if self.port else "")


@dataclass(frozen=True)
class Wanted:
    """A target that a model is to be run on. ``target`` is its entry in the table (that of ``native`` for a device)."""

    name: str
    target: Target
    address: Address | None = None
    provider: str | None = None


def parse_targets(text: str) -> tuple[Wanted, ...]:
    """Targets, aliases and groups with commas between them, each once, in their order. Raises SpecError."""
    found: dict[str, Wanted] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        for wanted in _parse(part):
            found.setdefault(wanted.name, wanted)
    if not found:
        raise SpecError("name at least one target, such as native or x86-64-avx2")
    return tuple(found.values())


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
    try:
        parts = urlsplit(text)
        host, user, port = parts.hostname, parts.username, parts.port
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError as error:
        raise SpecError(f"'{text}' is no address: {error}; write ssh://user@host:port") from error
    if not host or parts.path.strip("/") or parts.fragment or parts.password is not None:
        raise SpecError(f"'{text}' is no address: write ssh://user@host:port?python=python3&threads=1")
    user = unquote(user) if user is not None else None
    for what, value in (("host", host), ("user", user)):
        if value is not None and (
            value.startswith("-") or not value.isprintable() or set(value) & set(" '\"\\$`;&|<>")
        ):
            raise SpecError(f"'{text}' is no address: its {what} '{value}' is none")
    if unknown := sorted(set(options) - {"python", "threads"}):
        raise SpecError(f"'{text}' has the option '{unknown[0]}'{nearest(unknown[0], ('python', 'threads'))}")
    threads = options.get("threads")
    if threads is not None and not (threads.isascii() and threads.isdecimal() and 1 <= int(threads[:9]) <= 256):
        raise SpecError(f"'{text}' has threads={threads}: write a number from 1 to 256")
    python = options.get("python", "python3")
    if not python or python.startswith("-") or not python.isprintable():
        raise SpecError(f"'{text}' has python={python}: name the interpreter on the device")
    address = Address(host, user, port, python, int(threads) if threads is not None else None)
    name = f"ssh://{address.name}"
    return Wanted(name, replace(NATIVE, name=name), address)
