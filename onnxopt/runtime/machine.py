"""On what, and with what, figures were measured."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("onnxopt", "onnx", "onnxruntime", "onnx-graphsurgeon", "numpy", "scipy")
# What decides which of ONNX Runtime's kernels run, x86 and ARM.
_INSTRUCTIONS = (
    *("sse4_1", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)


def versions() -> dict[str, str]:
    """Version of everything that shapes a result, by name."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def machine() -> dict[str, str | int | list[str] | None]:
    """The processor, its instruction sets that matter here, cores that we may use, memory in bytes, and the system."""
    text = _read("/proc/cpuinfo")
    return {
        "cpu": _cpu_name(text),
        "architecture": platform.machine(),
        "instructions": instructions(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory(),
        "system": f"{platform.system()} {platform.release()}",
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpu_name(text: str) -> str:
    match = re.search(r"^(?:model name|Model|Hardware)\s*: *(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def instructions() -> list[str]:
    """The instruction sets of this machine that matter here; none where the system does not tell."""
    match = re.search(r"^(?:flags|Features)\s*: *(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    have = set(match[1].split()) if match else set()
    return [name for name in _INSTRUCTIONS if name in have]


def architecture() -> str:
    """``x86-64``, ``arm64``, or what the system calls it."""
    return {"x86_64": "x86-64", "AMD64": "x86-64", "aarch64": "arm64", "ARM64": "arm64"}.get(
        platform.machine(), platform.machine()
    )


def _memory() -> int | None:
    match = re.search(r"^MemTotal:\s*(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return int(match[1]) * 1024 if match else None
