"""Which way leads to a target, and why none does."""

from __future__ import annotations

import pytest

from onnxopt.errors import TargetError
from onnxopt.runtime.target import X86_AVX2, X86_AVX512, X86_SSE42
from onnxopt.targets import emulated, find
from onnxopt.targets.emulated import Emulated
from onnxopt.targets.find import find_way, require
from onnxopt.targets.masked import find_mask
from onnxopt.targets.native import Native
from onnxopt.targets.remote import Device
from onnxopt.targets.spec import parse_targets
from onnxopt.targets.way import Unavailable

NO_MASK = Unavailable("masking needs capstone", "pip install capstone")


def way(text: str) -> object:
    (wanted,) = parse_targets(text)
    return find_way(wanted)


def test_native_and_devices() -> None:
    assert way("native") == Native()
    device = way("ssh://pi@kitchen")
    assert isinstance(device, Device)
    assert device.address.host == "kitchen"


def test_execution_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = way("native+dml")
    assert isinstance(missing, Unavailable)
    assert str(missing).endswith("has no DmlExecutionProvider; install a build that has it")
    monkeypatch.setattr(find.session, "providers", lambda: ("XnnpackExecutionProvider", "CPUExecutionProvider"))
    assert way("native+xnnpack") == Native("XnnpackExecutionProvider", "natively, XnnpackExecutionProvider first")


def test_x86_is_masked_where_that_works() -> None:
    assert way("x86-64-sse42") == find_mask(X86_SSE42) or isinstance(find_mask(X86_SSE42), Unavailable)


def test_x86_is_emulated_where_it_cannot_be_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "find_mask", lambda target: NO_MASK)
    command = Emulated(X86_AVX2, ("qemu-x86_64",), "10.0.13")
    monkeypatch.setattr(find, "find_emulator", lambda target: command)
    assert way("x86-64-avx2") is command


def test_both_reasons_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "find_mask", lambda target: NO_MASK)
    monkeypatch.setattr(find, "find_emulator", lambda target: Unavailable("there is no qemu-x86_64", "install it"))
    assert str(way("x86-64-avx2")) == (
        "masking needs capstone; to emulate it, there is no qemu-x86_64; pip install capstone or install it"
    )


def test_no_processor_of_qemu_has_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "find_mask", lambda target: NO_MASK)
    monkeypatch.setattr(emulated, "architecture", lambda: "x86-64")
    monkeypatch.setattr(emulated.sys, "platform", "linux")
    assert "QEMU has no such processor" in str(find_way(parse_targets(X86_AVX512.name)[0]))


def test_what_is_required_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    require(parse_targets("native"))
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")
    with pytest.raises(TargetError) as refused:
        require(parse_targets("native,raspberrypi5"))
    assert refused.value.exit_code == 4
    assert str(refused.value) == (
        "the target 'arm64-cortex-a76' is required, but not available: it is not set up on this machine; "
        "run 'onnxopt targets setup arm64'"
    )
