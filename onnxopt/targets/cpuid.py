"""Where in a program's file the CPUID instructions are.

The bytes 0F A2 also occur inside other instructions, so each function that has them is decoded from its start. Where
functions start is in the table that unwinds the stack (.eh_frame_hdr: DWARF, Linux Standard Base Core 5.0, 10.6.2).
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from onnxopt.errors import TargetError
from onnxopt.graph.signature import Array

_CPUID = b"\x0f\xa2"
_LONGEST = 16  # an instruction has fewer bytes
_LOAD, _EH_FRAME, _EXECUTABLE = 1, 0x6474E550, 1
# A table of pairs of 32-bit offsets from its own start, its length in 32 bits.
_TABLE = 0x3B


class _Segment(NamedTuple):
    """Part of a file and where it lies in memory; ``size`` in bytes."""

    kind: int
    flags: int
    offset: int
    address: int
    size: int


def offsets(program: bytes) -> list[int]:
    """Offsets into an x86-64 ELF file at which a CPUID instruction begins.

    Raises TargetError for a file without the tables this needs, or where capstone is not installed.
    """
    try:
        import capstone
    except ImportError:
        raise TargetError("finding ONNX Runtime's CPUID instructions needs capstone; pip install capstone") from None
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    try:
        segments = _segments(program)
        starts = _functions(program, segments)
    except (struct.error, ValueError, IndexError):
        raise TargetError("ONNX Runtime's library is damaged; install onnxruntime again") from None
    found = []
    for segment in segments:
        if segment.kind != _LOAD or not segment.flags & _EXECUTABLE:
            continue
        shift = segment.offset - segment.address
        for match in re.finditer(re.escape(_CPUID), program[segment.offset : segment.offset + segment.size]):
            offset = segment.offset + match.start()
            function = bisect_right(starts, offset - shift) - 1
            start = int(starts[function]) + shift if function >= 0 else offset
            body = decoder.disasm_lite(program[start : offset + _LONGEST], 0)
            over = next(((at, name) for at, size, name, _ in body if start + at + size > offset), None)
            if over is None:
                raise TargetError(f"what ONNX Runtime's library has at {offset:#x} is no code that capstone knows")
            if over == (offset - start, "cpuid"):
                found.append(offset)
    return found


def _segments(program: bytes) -> list[_Segment]:
    if program[:6] != b"\x7fELF\x02\x01":
        raise TargetError("ONNX Runtime's library is no 64-bit ELF file: its CPUID instructions cannot be found")
    (table,) = struct.unpack_from("<Q", program, 32)
    size, count = struct.unpack_from("<HH", program, 54)
    headers = [struct.unpack_from("<IIQQQQ", program, table + i * size) for i in range(count)]
    return [_Segment(kind, flags, offset, address, length) for kind, flags, offset, address, _, length in headers]


def _functions(program: bytes, segments: list[_Segment]) -> Array:
    """Addresses at which functions start, rising."""
    header = next((s for s in segments if s.kind == _EH_FRAME), None)
    if header is None or program[header.offset] != 1 or program[header.offset + 3] != _TABLE:
        raise TargetError("ONNX Runtime's library has no table of its functions: its instructions cannot be told apart")
    (count,) = struct.unpack_from("<I", program, header.offset + 8)
    pairs = np.frombuffer(program, "<i4", 2 * count, header.offset + 12).reshape(-1, 2)
    return pairs[:, 0].astype(np.int64) + header.address
