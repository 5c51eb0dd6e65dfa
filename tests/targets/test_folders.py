"""Where programs are kept that are run: nobody else must be able to change them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onnxopt.errors import TargetError
from onnxopt.runtime.machine import architecture
from onnxopt.targets.find import find_way
from onnxopt.targets.folders import arm64_folder, cache_folder
from onnxopt.targets.runtimes import find_runtime
from onnxopt.targets.spec import parse_targets
from onnxopt.targets.way import Unavailable

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="rights are other ones on Windows")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "onnxopt/targets/ort-1.16.3").mkdir(parents=True)
    return tmp_path / "onnxopt"


def test_places(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == cache
    assert arm64_folder() == cache / "targets/arm64"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(cache))
    assert cache_folder("a") == cache / ".cache/onnxopt/a"


@pytest.mark.parametrize("open_to_all", ["", "targets", "targets/ort-1.16.3"])
def test_what_all_can_write_is_not_run(cache: Path, open_to_all: str) -> None:
    (cache / open_to_all).chmod(0o777)
    found = find_runtime("1.16")
    why = f"another user can change what lies in {cache / open_to_all}, and it would be run"
    assert found == Unavailable(why, "set XDG_CACHE_HOME to a folder that is yours alone")


def test_what_is_another_users_is_not_run(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    us = os.geteuid()
    if us == 0:
        os.chown(cache, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: us + 1)
    with pytest.raises(TargetError, match=f"another user can change what lies in {cache}, and it would be run; set"):
        arm64_folder()
    (arm,) = parse_targets("raspberrypi4")
    found = find_way(arm)
    assert isinstance(found, Unavailable)
    if architecture() == "x86-64":
        assert found.why.startswith("another user can change")
