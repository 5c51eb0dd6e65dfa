"""Processors in emulation: the kernels of each, and the same bits as by masking."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from onnxopt.graph.signature import Feed
from onnxopt.runtime import session
from onnxopt.runtime.exchange import Job
from onnxopt.runtime.target import ARM, TARGETS, X86_AVX2, X86_AVX512, X86_SSE42, Target
from onnxopt.targets import emulated
from onnxopt.targets.emulated import Emulated, find_emulator, qemu_version
from onnxopt.targets.environment import read_environment
from onnxopt.targets.masked import find_mask
from onnxopt.targets.way import Unavailable

EXACT, SATURATED = 8 * 2 * 255 * 127, 8 * 32767


def way_to(target: Target) -> Emulated:
    found = find_emulator(target)
    if isinstance(found, Unavailable):
        pytest.skip(f"{target.name}: {found}")
    return found


def test_arm_is_exact(arm64: Path, telltale: Path, feed: Feed) -> None:
    way = way_to(TARGETS["arm64-cortex-a72"])
    answer = way.run(Job(models=(telltale,), feeds=[feed], threads=2))
    assert answer.machine == "aarch64"
    assert answer.onnxruntime == session.__version__
    assert np.unique(answer.runs[0].outputs[0]["sum"]).tolist() == [EXACT]
    expected = session.Session(telltale).run(feed)["dot"]
    np.testing.assert_allclose(answer.runs[0].outputs[0]["dot"], expected, rtol=1e-4, atol=1e-5)
    assert way.how.endswith("as cortex-a72")
    assert not way.timed


def test_every_arm_processor_is_known_to_the_emulator(arm64: Path) -> None:
    assert [way_to(target).command[3:5] for target in ARM] == [("-cpu", target.cpu) for target in ARM]


@pytest.mark.slow
def test_x86_gives_the_bits_that_masking_gives(telltale: Path, feed: Feed) -> None:
    """Neither knows of the other. The emulator lacks the instructions, so the kernels need no others."""
    targets = (X86_SSE42, X86_AVX2)
    masks = [found for found in map(find_mask, targets) if not isinstance(found, Unavailable)]
    if len(masks) < len(targets):
        pytest.skip("this machine can mask less than AVX2")
    job = Job(models=(telltale,), feeds=[feed])
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda target: way_to(target).run(job), targets))
    for target, answer, mask in zip(targets, answers, masks, strict=True):
        assert np.unique(answer.runs[0].outputs[0]["sum"]).tolist() == [SATURATED if target.saturates else EXACT]
        assert answer.runs[0].sha256 == mask.run(job).runs[0].sha256


def environment(folder: Path, **changes: object) -> Path:
    """A folder as the setup leaves it, with empty files."""
    for file in ("bin/qemu-aarch64", "sysroot/usr/bin/python3.11", "site/numpy"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    said = {"qemu": "bin/qemu-aarch64", "qemu_version": "10.0.13", "python": "usr/bin/python3.11"}
    said |= {"onnxruntime": session.__version__, "numpy": "2.4.6"}
    (folder / "environment.json").write_text(json.dumps(said | changes))
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the environment would lie in an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "onnxopt/targets/arm64"


def test_what_setup_leaves_is_used(cache: Path) -> None:
    way = find_emulator(TARGETS["arm64-neoverse-v1"])
    assert way == Unavailable("it is not set up on this machine", "run 'onnxopt targets setup arm64'")
    environment(cache)
    way = find_emulator(TARGETS["arm64-neoverse-v1"])
    assert isinstance(way, Emulated)
    system = cache / "sysroot"
    assert way.command == (
        *(str(cache / "bin/qemu-aarch64"), "-U", "LD_LIBRARY_PATH", "-cpu", "neoverse-v1", "-L", str(system)),
        str(system / "usr/bin/python3.11"),
    )
    assert way.packages == (str(cache / "site"),)
    assert way.how == "emulated by QEMU 10.0.13 as neoverse-v1"


def test_an_emulator_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "qemu").touch()
    found = read_environment(environment(tmp_path / "arm64", qemu=str(tmp_path / "qemu"), qemu_version=None))
    assert found is not None
    assert (found.qemu, found.qemu_version) == (str(tmp_path / "qemu"), "of an unknown version")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"qemu": 1}', '{"qemu": "bin/gone", "qemu_version": "1", "python": "p", "onnxruntime": "1"}'],
)
def test_half_an_environment_is_none(tmp_path: Path, content: str) -> None:
    environment(tmp_path)
    assert read_environment(tmp_path) is not None
    (tmp_path / "environment.json").write_text(content)
    assert read_environment(tmp_path) is None


@pytest.mark.parametrize("changes", [{"qemu": "bin/gone"}, {"python": "usr/bin/python2"}])
def test_what_is_missing_in_it(tmp_path: Path, changes: dict[str, object]) -> None:
    assert read_environment(environment(tmp_path, **changes)) is None


def test_another_version_of_onnx_runtime(cache: Path) -> None:
    environment(cache, onnxruntime="1.16.3")
    assert find_emulator(TARGETS["arm64-cortex-a53"]) == Unavailable(
        f"it was set up with ONNX Runtime 1.16.3, and here is {session.__version__}",
        "run 'onnxopt targets setup arm64' again",
    )


class TestX86:
    """Where QEMU's x86 comes from."""

    @pytest.fixture(autouse=True)
    def _on_x86(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(emulated, "architecture", lambda: "x86-64")
        monkeypatch.setattr(emulated.sys, "platform", "linux")

    def put(self, path: Path, says: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\necho '{says}'\n")
        path.chmod(0o755)

    def test_none(self, cache: Path) -> None:
        assert find_emulator(X86_AVX2) == Unavailable(
            "there is no qemu-x86_64", "install your system's package qemu-user"
        )
        assert find_emulator(X86_AVX512) == Unavailable("QEMU has no such processor", "")

    def test_on_the_path(self, cache: Path, tmp_path: Path) -> None:
        self.put(tmp_path / "bin/qemu-x86_64-static", "qemu-x86_64 version 7.2.22 (Debian)")
        way = find_emulator(X86_AVX2)
        assert isinstance(way, Emulated)
        assert way.command[:3] == (str(tmp_path / "bin/qemu-x86_64-static"), "-cpu", "Haswell")
        assert (way.version, way.packages) == ("7.2.22", None)

    def test_what_setup_brought_comes_first(self, cache: Path, tmp_path: Path) -> None:
        self.put(tmp_path / "bin/qemu-x86_64", "qemu-x86_64 version 7.2.22")
        self.put(cache / "bin/qemu-x86_64", "qemu-x86_64 version 10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)")
        way = find_emulator(X86_SSE42)
        assert isinstance(way, Emulated)
        assert way.how == "emulated by QEMU 10.0.13 as Nehalem"

    @pytest.mark.parametrize(
        ("says", "why"),
        [("qemu-x86_64 version 6.1.0", "QEMU 6.1.0 has no AVX2"), ("hello", "does not say which version it is")],
    )
    def test_one_that_will_not_do(self, cache: Path, tmp_path: Path, says: str, why: str) -> None:
        self.put(tmp_path / "bin/qemu-x86_64", says)
        way = find_emulator(X86_AVX2)
        assert isinstance(way, Unavailable)
        assert way.why.endswith(why)

    def test_one_that_does_not_start(self, cache: Path, tmp_path: Path) -> None:
        (tmp_path / "bin").mkdir()
        assert qemu_version(str(tmp_path / "bin")) is None


@pytest.mark.parametrize("name", ["x86-64-avx2", "arm64-cortex-a72"])
def test_elsewhere(cache: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Nothing is to be set up there."""
    environment(cache)
    monkeypatch.setattr(emulated, "architecture", lambda: "arm64")
    assert find_emulator(TARGETS[name]) == Unavailable(
        "it can be emulated on Linux on x86-64 only", "use a real device, ssh://user@host"
    )
