"""CPUID instructions in a program, and in the smallest ELF files that have a table of functions."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from onnxopt.errors import TargetError
from onnxopt.targets import cpuid

pytest.importorskip("capstone")

CPUID = b"\x0f\xa2"
RET = b"\xc3"
_CODE = 0x200


def elf(functions: list[bytes], *, table: int = 0x3B, header: bool = True) -> bytes:
    """An ELF file with these functions in a row, in memory 0x10000 above their places in the file."""
    up = 0x10000
    starts, code = [], b""
    for body in functions:
        starts.append(_CODE + len(code))
        code += body
    unwind = _CODE + len(code)
    # version, encodings of what follows, a pointer to the frames, the count, and pairs: start, frame
    frames = bytes([1, 0x1B, 0x03, table]) + struct.pack("<iI", 0, len(starts))
    frames += b"".join(struct.pack("<ii", start - unwind, 0) for start in starts)
    segments = [(1, 5, _CODE, up + _CODE, len(code)), (1, 4, unwind, up + unwind, len(frames))]
    if header:
        segments.append((0x6474E550, 4, unwind, up + unwind, len(frames)))
    head = b"\x7fELF\x02\x01".ljust(32, b"\0") + struct.pack("<Q", 64)
    head = head.ljust(54, b"\0") + struct.pack("<HH", 56, len(segments))
    rows = b"".join(struct.pack("<IIQQQQQQ", k, f, o, a, a, n, n, 4096) for k, f, o, a, n in segments)
    return (head.ljust(64, b"\0") + rows).ljust(_CODE, b"\0") + code + frames


def test_instructions_are_told_from_bytes_that_look_the_same() -> None:
    constant = b"\xb8" + CPUID + b"\x00\x00"  # mov eax, 0xa20f
    push = b"\x53"
    program = elf([constant + RET, push + CPUID + RET, RET, constant + CPUID])
    assert cpuid.offsets(program) == [_CODE + 6 + 1, _CODE + 6 + 4 + 1 + 5]
    assert cpuid.offsets(elf([RET])) == []


def test_the_table_of_functions_separates_them() -> None:
    """The end of one is data: decoded on, it would swallow the head of the next."""
    assert cpuid.offsets(elf([RET + b"\xb8", CPUID + RET])) == [_CODE + 2]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"", "no 64-bit ELF file: its CPUID instructions cannot be found"),
        (b"MZ" + bytes(200), "no 64-bit ELF file"),
        (b"\x7fELF\x01\x01" + bytes(200), "no 64-bit ELF file"),
        (elf([CPUID], header=False), "has no table of its functions"),
        (elf([CPUID], table=0xFF), "has no table of its functions"),
        (b"\x7fELF\x02\x01" + bytes(20), "is damaged; install onnxruntime again"),
        (elf([CPUID] * 9)[:-20], "is damaged; install onnxruntime again"),
        (elf([b"\x06" + CPUID]), "has at 0x201 is no code that capstone knows"),
    ],
)
def test_refusals(program: bytes, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        cpuid.offsets(program)


def test_without_capstone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "capstone", None)
    with pytest.raises(TargetError, match="needs capstone; pip install capstone"):
        cpuid.offsets(elf([CPUID]))


def test_python_itself_has_none_or_few() -> None:
    """A real program of some size."""
    program = Path(sys.executable).resolve().read_bytes()
    if program[:6] != b"\x7fELF\x02\x01" or program[18:20] != b"\x3e\x00":
        pytest.skip("this Python is no x86-64 ELF file")
    assert all(program[place : place + 2] == CPUID for place in cpuid.offsets(program))
