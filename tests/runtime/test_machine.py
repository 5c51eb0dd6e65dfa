"""The facts that a report gives of a machine."""

from __future__ import annotations

import json
import platform

import numpy as np
import onnxruntime
import pytest

from onnxopt.runtime import machine as module
from onnxopt.runtime.machine import machine, versions

ARM = """processor : 0
BogoMIPS : 108.00
Features : fp asimd evtstrm aes crc32 asimdhp cpuid asimddp
CPU part : 0xd0b

Model : Raspberry Pi 5 Model B
"""
X86 = "processor\t: 0\nmodel name\t: Some Processor @ 2.0GHz\nflags\t\t: fpu sse4_1 avx avx2 fma avx512f avx512_vnni\n"


def test_versions() -> None:
    found = versions()
    assert (found["numpy"], found["onnxruntime"]) == (np.__version__, onnxruntime.__version__)
    assert found["python"] == platform.python_version()
    assert {"onnxopt", "onnx", "onnx-graphsurgeon"} <= set(found)


def test_a_package_that_was_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PACKAGES", ("no-such-package",))
    assert versions()["no-such-package"] == "unknown"


def test_this_machine() -> None:
    found = machine()
    assert found["cpu"]
    assert found["architecture"] == platform.machine()
    assert isinstance(found["cores"], int)
    assert found["cores"] >= 1
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "name", "instructions"),
    [
        (X86, "Some Processor @ 2.0GHz", ["avx512_vnni", "avx512f", "avx2", "avx", "fma", "sse4_1"]),
        (ARM, "Raspberry Pi 5 Model B", ["asimd", "asimdhp", "asimddp"]),
    ],
)
def test_processors(text: str, name: str, instructions: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert module._cpu_name(text) == name
    monkeypatch.setattr(module, "_read", lambda path: text)
    assert sorted(module.instructions()) == sorted(instructions)


def test_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_read", lambda path: "")
    found = machine()
    assert (found["instructions"], found["memory_bytes"]) == ([], None)
    assert found["cpu"]


def test_a_file_that_cannot_be_read() -> None:
    assert module._read("/nowhere/cpuinfo") == ""
