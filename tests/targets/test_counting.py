"""Instructions counted in emulation; with stand-ins for emulators where none takes plugins."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from onnxopt.errors import ExecutionError
from onnxopt.graph.signature import Feed
from onnxopt.runtime.exchange import Job
from onnxopt.runtime.target import TARGETS, X86_AVX2
from onnxopt.targets import counting
from onnxopt.targets.counting import Counter, find_counter
from onnxopt.targets.emulated import Emulated, find_emulator
from onnxopt.targets.way import Unavailable

A53, A72, A76, V1 = (TARGETS[f"arm64-{cpu}"] for cpu in ("cortex-a53", "cortex-a72", "cortex-a76", "neoverse-v1"))
X86 = Emulated(X86_AVX2, ("qemu-x86_64", "-cpu", "Haswell", sys.executable), "10.0.13")


@pytest.fixture
def emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a stand-in on the PATH, which starts the program after its options with this processor."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    (tmp_path / "bin").mkdir()

    def put(name: str, version: str, says: str = "", options: str = "-plugin file") -> None:
        file = tmp_path / "bin" / name
        file.write_text(
            "#!/bin/sh\n"
            f"case $1 in --version) echo 'qemu version {version}'; exit;; -h) echo '{options}'; exit;; esac\n"
            f'{says}\nshift 4; exec "$@"\n'
        )
        file.chmod(0o755)
        counting._takes_plugins.cache_clear()

    return put


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_plugin", lambda: tmp_path / "plugin.so")


@pytest.mark.usefixtures("compiled")
def test_what_lies_between_two_marks_is_counted(emulator, telltale: Path, feed: Feed) -> None:
    emulator("qemu-x86_64", "7.2.22", "for n in 100 142 200 207; do echo instructions $n >&2; done")
    counter = find_counter(X86)
    assert isinstance(counter, Counter)
    assert counter.count(Job(models=(telltale, telltale), feeds=[feed])) == (42, 7)
    with pytest.raises(ExecutionError, match="the emulator counted no instructions on x86-64-avx2"):
        counter.count(Job(models=(telltale,), feeds=[feed]))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("version", "options", "why"),
    [
        ("7.2.22", "-cpu model", "there is no qemu-x86_64 that takes plugins; install one"),
        ("10.0.13", "-plugin file", "QEMU 10 takes other plugins than ours; use QEMU 6, 7 or 8"),
        ("unknown", "-plugin file", "QEMU 0 takes other plugins than ours"),
    ],
)
def test_emulators_that_cannot_count(emulator, version: str, options: str, why: str) -> None:
    emulator("qemu-x86_64", version, options=options)
    assert str(find_counter(X86)).startswith(why)


@pytest.mark.usefixtures("compiled")
def test_arm_needs_its_own_cpuinfo(emulator) -> None:
    command = ("qemu-aarch64", "-U", "LD_LIBRARY_PATH", "-cpu", "x", "-L", "/sysroot", "/sysroot/python")
    emulator("qemu-aarch64", "7.2.22")
    found = find_counter(Emulated(A72, command, "10.0.13"))
    assert isinstance(found, Counter)
    assert found.part == 0xD08
    assert str(find_counter(Emulated(V1, command, "10"))) == "QEMU 7.2 does not know neoverse-v1; use QEMU 8.2"
    emulator("qemu-aarch64", "8.2.2")
    found = find_counter(Emulated(V1, command, "10"))
    assert isinstance(found, Counter)
    assert found.part is None


def test_the_system_is_shown_with_another_cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "onnxopt/targets/arm64/sysroot/usr/bin").mkdir(parents=True)
    (tmp_path / "root").mkdir()
    told = counting._told(tmp_path / "root", 0xD0B)
    assert (told / "usr/bin").is_dir()
    text = (told / "proc/cpuinfo").read_text()
    assert "CPU part\t: 0xd0b\n" in text
    assert " asimddp\n" in text


def test_without_a_compiler(emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    emulator("qemu-x86_64", "7.2.22")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find_counter(X86) == Unavailable("counting needs a C compiler", "install gcc")


def test_a_compiler_that_fails(emulator, tmp_path: Path) -> None:
    emulator("qemu-x86_64", "7.2.22")
    emulator("cc", "1", "exit 1")
    assert str(find_counter(X86)).startswith(f"the counter cannot be compiled in {tmp_path}/cache/onnxopt/counting: ")
    assert list((tmp_path / "cache/onnxopt/counting").iterdir()) == []


def test_the_plugin_is_compiled_once(emulator) -> None:
    emulator("qemu-x86_64", "7.2.22")
    found = find_counter(X86)
    if isinstance(found, Unavailable):
        pytest.skip(str(found))
    made = found.plugin.stat().st_mtime_ns
    again = find_counter(X86)
    assert isinstance(again, Counter)
    assert (again.plugin, again.plugin.stat().st_mtime_ns) == (found.plugin, made)
    assert b"instructions" in found.plugin.read_bytes()


@pytest.mark.slow
def test_dot_products_save_instructions(telltale: Path, feed: Feed) -> None:
    """With the real thing, where it is installed: the counts repeat, and a newer core needs fewer."""
    counts = []
    for target in (A53, A76, A76):
        way = find_emulator(target)
        found = way if isinstance(way, Unavailable) else find_counter(way)
        if isinstance(found, Unavailable):
            pytest.skip(f"{target.name}: {found}")
        counts.append(found.count(Job(models=(telltale,), feeds=[feed]))[0])
    assert counts[1] < counts[0]
    assert counts[2] == pytest.approx(counts[1], rel=0.01)
    assert np.log10(counts[0]) < 6
