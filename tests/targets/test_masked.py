"""Older x86 processors by masking: which kernels they choose, and how the changed copy of the library is kept."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from onnxopt.errors import ExecutionError, TargetError
from onnxopt.graph.signature import Feed
from onnxopt.runtime.exchange import Job, Run
from onnxopt.runtime.local import Launch, run_in_child
from onnxopt.runtime.target import TARGETS, X86, X86_AVX2, X86_AVX512_VNNI, X86_SSE42, Target
from onnxopt.targets import cpuid, mask, masked
from onnxopt.targets.masked import changed_library, find_mask
from onnxopt.targets.way import Unavailable

EXACT, SATURATED = 8 * 2 * 255 * 127, 8 * 32767


def way_to(target: Target) -> masked.Masked:
    found = find_mask(target)
    if isinstance(found, Unavailable):
        pytest.skip(str(found))
    return found


@pytest.fixture(scope="module")
def answers(telltale: Path, feed: Feed) -> Mapping[str, Run]:
    """What each level that this machine can show gives."""
    ways = [found for found in map(find_mask, X86) if not isinstance(found, Unavailable)]
    if not ways:
        pytest.skip("this machine can mask nothing")
    return {way.target.name: way.run(Job(models=(telltale,), feeds=[feed])).runs[0] for way in ways}


def test_integer_kernels_are_those_of_the_level(answers: Mapping[str, Run]) -> None:
    for name, run in answers.items():
        expected = SATURATED if TARGETS[name].saturates else EXACT
        assert np.unique(run.outputs[0]["sum"]).tolist() == [expected], name


def test_float_kernels_are_those_of_the_level(answers: Mapping[str, Run]) -> None:
    """Sums with and without fused multiplication differ in their last bits; blocks of 256 and 512 bits may."""
    dots = {name: run.sha256[0]["dot"] for name, run in answers.items()}
    values = [run.outputs[0]["dot"] for run in answers.values()]
    for value in values:
        np.testing.assert_allclose(value, values[0], rtol=1e-4, atol=1e-5)
    if "x86-64-avx2" not in dots:
        pytest.skip("this machine has no AVX2 to take away")
    assert dots["x86-64-sse42"] == dots["x86-64-avx"] != dots["x86-64-avx2"]
    assert dots["x86-64-avx2"] == dots.get("x86-64-avx2vnni", dots["x86-64-avx2"])
    assert dots.get("x86-64-avx512") == dots.get("x86-64-avx512vnni", dots.get("x86-64-avx512"))


def test_threads_change_nothing(answers: Mapping[str, Run], telltale: Path, feed: Feed) -> None:
    run = way_to(X86_AVX2).run(Job(models=(telltale,), feeds=[feed], threads=2, runs=3)).runs[0]
    assert run.sha256 == answers["x86-64-avx2"].sha256


def test_a_crash_has_its_name(tmp_path: Path) -> None:
    """Another undefined instruction than the one that stands for CPUID is nobody's to answer."""
    way = way_to(X86_SSE42)
    program = tmp_path / "crash.py"
    program.write_text(
        "import ctypes, mmap\ncode = mmap.mmap(-1, 2, prot=7)\ncode.write(bytes.fromhex('0f0b'))\n"
        "ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()"
    )
    command = (sys.executable, "-I", mask.__file__, str(way.library), "", str(program))
    with pytest.raises(ExecutionError, match="the process that ran the model on x was ended by SIGILL"):
        run_in_child(Job(models=(), feeds=[]), Launch(command=command, where="on x"))


def test_errors_say_where(tmp_path: Path) -> None:
    with pytest.raises(ExecutionError, match="the model failed to load on x86-64-sse42: "):
        way_to(X86_SSE42).run(Job(models=(tmp_path / "no.onnx",), feeds=[{}]))


def test_a_library_that_does_not_ask_is_not_masked(telltale: Path, feed: Feed) -> None:
    """ONNX Runtime as it is installed: it runs, but on the kernels of this processor."""
    way = way_to(X86_SSE42)
    spec = find_spec(mask.MODULE)
    assert spec is not None
    assert spec.origin is not None
    with pytest.raises(TargetError, match="nothing was masked: this build of ONNX Runtime loads its kernels from"):
        replace(way, library=Path(spec.origin)).run(Job(models=(telltale,), feeds=[feed]))


def test_how_says_what_is_hidden() -> None:
    assert way_to(X86_SSE42).how == "natively, AVX and what came after it hidden"
    assert set(masked._HIDDEN) == {t.name for t in X86}


def test_each_level_hides_all_that_a_newer_one_hides() -> None:
    bits = {name: set(",".join(parts).split(",")) for name, (_, parts) in masked._HIDDEN.items()}
    levels = ["avx512vnni", "avx512", "avx2", "avx", "sse42"]
    for newer, older in itertools.pairwise(levels):
        assert bits[f"x86-64-{newer}"] < bits[f"x86-64-{older}"]
    assert bits["x86-64-avx2vnni"] < bits["x86-64-avx2"]
    assert "7.0.b:16" in bits["x86-64-avx2vnni"]
    assert "7.1.a:4" not in bits["x86-64-avx2vnni"]


class TestWhereItCannotBe:
    """Reasons, and what to do."""

    def test_another_system(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "win32")
        assert find_mask(X86_AVX2) == Unavailable("instruction sets can be masked on Linux on x86-64 only", "")

    def test_an_older_processor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        way_to(X86_SSE42)
        monkeypatch.setattr(masked, "instructions", lambda: ["sse4_1", "avx", "f16c", "fma", "avx2"])
        assert find_mask(X86_AVX512_VNNI) == Unavailable(
            "this processor has no avx512f, and masking can only take away", ""
        )
        assert not isinstance(find_mask(X86_AVX2), Unavailable)

    def test_without_capstone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        way_to(X86_SSE42)
        monkeypatch.setattr(masked, "find_spec", lambda name: None)
        assert find_mask(X86_SSE42) == Unavailable("masking needs capstone", "pip install capstone")

    def test_without_a_place_for_the_copy(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        way_to(X86_SSE42)
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert find_mask(X86_SSE42) == Unavailable(
            f"cannot keep a changed copy of ONNX Runtime in {tmp_path}/file/onnxopt/masked: Not a directory",
            "set XDG_CACHE_HOME to a folder that has 40 MB of room",
        )


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of ours in place of ONNX Runtime's, each byte an instruction, and an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "lib" / "state.so"
    path.parent.mkdir()
    path.write_bytes(b"one \x0f\xa2 two \x0f\xa2")
    (path.parent / "libonnxruntime_providers_shared.so").touch()

    class Spec:
        origin = str(path)

    monkeypatch.setattr(masked, "find_spec", lambda name: Spec)
    monkeypatch.setattr(cpuid, "offsets", lambda program: [4] if b"one" in program else [])
    return path


def kept(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache/onnxopt/masked").iterdir())


def test_the_copy_is_made_once(library: Path, tmp_path: Path) -> None:
    copy = changed_library()
    assert copy.read_bytes() == b"one \x0f\xff two \x0f\xa2"
    assert (copy.parent / "libonnxruntime_providers_shared.so").resolve().parent == library.parent
    made = copy.stat().st_mtime_ns
    assert changed_library() == copy
    assert copy.stat().st_mtime_ns == made
    assert kept(tmp_path) == [copy.parent.name]


def test_copies_of_what_is_no_longer_there_go(library: Path, tmp_path: Path) -> None:
    first = changed_library()
    parent = first.parent.parent
    gone, other, begun, left = (parent / name for name in ("gone", "other", ".making-now", ".making-then"))
    for folder in (gone, other, begun, left):
        folder.mkdir()
    (gone / "original").symlink_to(tmp_path / "removed.so")
    (tmp_path / "another.so").touch()
    (other / "original").symlink_to(tmp_path / "another.so")
    long_ago = time.time() - 7200
    os.utime(left, (long_ago, long_ago))
    library.write_bytes(b"one, newer")
    second = changed_library()
    assert second != first
    assert kept(tmp_path) == sorted([".making-now", "other", second.parent.name])


def test_many_make_it_at_once(library: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        copies = set(pool.map(lambda _: changed_library(), range(16)))
    assert len(copies) == 1
    assert kept(tmp_path) == [copies.pop().parent.name]


def test_a_library_without_cpuid(library: Path) -> None:
    library.write_bytes(b"nothing")
    with pytest.raises(TargetError, match="ONNX Runtime's library has no CPUID instructions to mask"):
        changed_library()


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked, "find_spec", lambda name: None)
    with pytest.raises(TargetError, match="library cannot be found; install onnxruntime again"):
        changed_library()


def test_processes_make_the_real_copy_at_once(tmp_path: Path) -> None:
    way_to(X86_SSE42)
    program = "from onnxopt.targets.masked import changed_library; print(changed_library())"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", program]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    copies = {process.communicate(timeout=60)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert kept(tmp_path) == [Path(copies.pop()).parent.name]
    assert copies == set()
