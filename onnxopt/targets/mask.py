"""Run a Python program with an ONNX Runtime that is told of fewer instruction sets than the processor has.

    python mask.py LIBRARY BITS PROGRAM ARGUMENT ...

LIBRARY is a copy of ONNX Runtime's extension module in which each CPUID instruction is replaced by one that no
processor has, 0F FF. This catches the signal that it raises, asks the processor, and takes BITS out of the answer:
"7.0.b:5,0x80000001.0.c:11", leaf, subleaf, register and bit. Needs only Python 3.8; Linux on x86-64.

In the end the last line of its standard error says whether that worked: "masked 33", how often CPUID was answered, or
"masked 0" where the copy was not loaded, or another library of ONNX Runtime beside it.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.util
import mmap
import runpy
import signal
import sys
from typing import Any

MODULE = "onnxruntime.capi.onnxruntime_pybind11_state"
TRAP = b"\x0f\xff"
# Where the kernel keeps the registers of what was interrupted, in words behind the head of 40 bytes of a ucontext.
_HEAD, _WORDS = 40, 17
_RBX, _RDX, _RAX, _RCX, _RIP = 11, 12, 13, 14, 16
_SA_SIGINFO, _SA_NODEFER = 4, 0x40000000
# void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4])
_CPUID = bytes.fromhex("53 4989d0 89f8 89f1 0fa2 418900 41895804 41894808 4189500c 5b c3")

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_kept: list[Any] = []  # what the handler needs for as long as the process lives
_OTHER = "libonnxruntime.so"


class _Action(ctypes.Structure):
    """struct sigaction"""

    _fields_ = (
        ("handler", _HANDLER),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class Finder(importlib.abc.MetaPathFinder):
    """Finds the changed copy where ONNX Runtime's extension module is wanted."""

    def __init__(self, library: str) -> None:
        self.library = library

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """The place of the copy; None for any other module."""
        return importlib.util.spec_from_file_location(fullname, self.library) if fullname == MODULE else None


def parse(text: str) -> dict[tuple[int, int, str], int]:
    """Bits to take out, by leaf, subleaf and register."""
    found: dict[tuple[int, int, str], int] = {}
    for part in filter(None, text.split(",")):
        place, bit = part.split(":")
        leaf, subleaf, register = place.split(".")
        key = int(leaf, 0), int(subleaf), register
        found[key] = found.get(key, 0) | 1 << int(bit)
    return found


def answer_cpuid(masked: dict[tuple[int, int, str], int]) -> list[int]:
    """From now on answer the trap as CPUID would, less these bits; the leaves that were asked for are listed."""
    asked: list[int] = []
    libc = ctypes.CDLL(None)
    code = mmap.mmap(-1, len(_CPUID), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(_CPUID)
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    cpuid = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(address)
    before = _Action()

    def handle(_: int, __: int, context: int) -> None:
        words = (ctypes.c_uint64 * _WORDS).from_address(context + _HEAD)
        if ctypes.string_at(words[_RIP], len(TRAP)) != TRAP:  # somebody else's fault: it will strike again
            libc.sigaction(signal.SIGILL, ctypes.byref(before), None)
            return
        leaf, subleaf = words[_RAX] & 0xFFFFFFFF, words[_RCX] & 0xFFFFFFFF
        asked.append(leaf)
        out = (ctypes.c_uint32 * 4)()
        cpuid(leaf, subleaf, out)
        at = subleaf if leaf == 7 else 0
        for word, register, value in zip((_RAX, _RBX, _RCX, _RDX), "abcd", out):  # noqa: B905  # 3.8 has no strict=
            words[word] = value & ~masked.get((leaf, at, register), 0)
        words[_RIP] += len(TRAP)

    action = _Action(_HANDLER(handle), flags=_SA_SIGINFO | _SA_NODEFER)
    _kept.extend((code, cpuid, action, before))
    if libc.sigaction(signal.SIGILL, ctypes.byref(action), ctypes.byref(before)) != 0:
        raise OSError("the system does not let a handler be set for SIGILL")
    return asked


def alone() -> bool:
    """Whether no library of ONNX Runtime is loaded that could hold the kernels instead of the copy."""
    with open("/proc/self/maps") as maps:
        return not any(_OTHER in line for line in maps)


if __name__ == "__main__":
    asked = answer_cpuid(parse(sys.argv[2]))
    sys.meta_path.insert(0, Finder(sys.argv[1]))
    sys.argv = sys.argv[3:]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        print("masked", len(asked) if alone() else 0, file=sys.stderr, flush=True)
