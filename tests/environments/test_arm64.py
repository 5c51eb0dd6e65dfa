import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onnxopt.environments import arm64
from onnxopt.environments.lock import Lock, dump, parse
from onnxopt.environments.source import Source
from onnxopt.errors import SpecError, TargetError
from onnxopt.progress import silent
from onnxopt.runtime import session
from onnxopt.runtime.machine import architecture
from onnxopt.targets.environment import read_environment
from onnxopt.targets.folders import arm64_folder

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or architecture() != "x86-64", reason="ARM is emulated on x86-64 Linux only"
)
TAG = "cp311-cp311-manylinux_2_28_aarch64"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no emulator on the PATH."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(arm64, "_ON_PATH", ("no-such-emulator",))
    return tmp_path / "cache"


@pytest.fixture
def wheels(make_wheel: Callable[..., Path]) -> None:
    make_wheel("onnxruntime", session.__version__, TAG)
    make_wheel("numpy", "9.9", TAG)
    make_wheel("numpy", "99.9", "cp312-cp312-manylinux_2_28_aarch64")


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages without pip, which takes its time."""

    def install(wanted: object, ready: object, site: Path, platform: object) -> None:
        for name in (f"onnxruntime-{session.__version__}", "numpy-9.9"):
            (site / f"{name}.dist-info").mkdir(parents=True)

    monkeypatch.setattr(arm64.wheels, "download", lambda *_: None)
    monkeypatch.setattr(arm64.wheels, "install", install)


@pytest.fixture
def said() -> list[str]:
    return []


def test_from_a_mirror_then_kept_then_offline(
    mirror: Any, lock: Lock, wheels: None, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(mirror=mirror.address, keep=tmp_path / "kept", lock=lock, keyrings=())
    line = arm64.set_up(source, said.append, silent)
    folder = arm64_folder()
    assert line == f"set up: ONNX Runtime {session.__version__} for ARM, emulated by QEMU 10.0.99, in {folder}"
    assert said[0] == f"into {folder}, about 160 MB:"
    assert said[1].startswith(f"from {mirror.address}: 0.0 MB for a system with Python, 0.0 MB for QEMU")
    made = json.loads((folder / "environment.json").read_text())
    sums = {p["name"]: p["sha256"] for p in made.pop("packages")}
    assert made == {
        **{"qemu": "bin/qemu-aarch64", "qemu_version": "10.0.99"},
        **{"python": "usr/bin/python3.11", "onnxruntime": session.__version__, "numpy": "9.9", "made": made["made"]},
    }
    assert list(sums) == ["libc6", "python3.11", "qemu-user", "numpy", "onnxruntime"]
    assert all(len(value) == 64 for value in sums.values())
    there = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "site" not in p.parts)
    assert there == [
        *("bin/qemu-aarch64", "bin/qemu-x86_64", "environment.json", "licenses/libc6.txt", "licenses/python.txt"),
        *(
            "licenses/qemu-user.txt",
            "lock.json",
            "sysroot/lib/aarch64-linux-gnu/libc.so.6",
            "sysroot/usr/bin/python3.11",
        ),
    ]
    assert parse((folder / "lock.json").read_text()) == lock
    assert (folder / "sysroot/usr/bin/python3.11").stat().st_mode & 0o7777 == 0o755
    assert read_environment(folder) is not None
    assert sorted(p.name for p in folder.parent.iterdir()) == [".lock", "arm64"]

    again = Source(mirror="http://127.0.0.1:9", lock=lock)
    assert arm64.set_up(again, said.append, silent) == line.replace("set up:", "it is set up already:")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "none"))
    offline = Source(offline=tmp_path / "kept", lock=lock, keyrings=())
    assert arm64.current() is None
    assert arm64.set_up(offline, said.append, silent) == line.replace(str(folder), str(arm64_folder()))
    assert arm64.current() is not None


def test_an_emulator_that_is_here_and_fits_is_used(
    mirror: Any, lock: Lock, no_pip: None, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxopt.environments.unpack import unpack

    unpack(mirror.root / lock.emulator.packages[0].file, tmp_path / "here", lambda name: name.startswith("usr/bin"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'here/usr/bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(arm64, "_ON_PATH", ("qemu-aarch64",))
    mirror.remove(lock.emulator.packages[0])
    mine = tmp_path / "here/usr/bin/qemu-aarch64"
    arm64.set_up(Source(mirror=mirror.address, lock=lock), said.append, silent)
    assert said[1].endswith(f"for QEMU, only if {mine} does not fit")
    assert said[-1] == f"{mine} fits: none is fetched"
    made = json.loads((arm64_folder() / "environment.json").read_text())
    assert made["qemu"] == str(mine)
    mine.write_text(mine.read_text().replace("10.0.99", "11.0"))
    assert arm64.current() is None  # it was updated since

    mine.write_text('#!/bin/sh\n[ "$1" = --version ] && echo version 7.2 || kill -SEGV $$\n')
    with pytest.raises(TargetError, match=r"qemu-user_3\.deb does not exist|no longer has the packages of trixie"):
        arm64.set_up(Source(mirror=mirror.address, lock=lock, keyrings=()), said.append, silent)
    assert said[-1].startswith(
        f"{mine} does not fit, another is fetched: the self-test failed with {mine}: the process"
    )
    assert "emulated as cortex-a53 was ended by SIGSEGV" in said[-1]


def test_an_emulator_that_tells_no_version(
    mirror: Any, lock: Lock, no_pip: None, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "qemu-aarch64").touch(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(arm64, "_ON_PATH", ("qemu-aarch64",))
    monkeypatch.setattr(arm64.selftest, "check", lambda *_: None)
    arm64.set_up(Source(mirror=mirror.address, lock=lock), said.append, silent)
    mine = tmp_path / "qemu-aarch64"
    assert said[-1] == f"{mine} does not fit, another is fetched: {mine} does not say which version it is"
    assert json.loads((arm64_folder() / "environment.json").read_text())["qemu_version"] == "10.0.99"


@pytest.mark.parametrize(
    ("before", "after", "error"),
    [
        ("'aarch64'", "'x86_64'", "the self-test ran ONNX Runtime .* on x86_64"),
        (
            "sys.argv = ",
            "import numpy\nnumpy.uint8 = None\nsys.argv = None or 1 / 0 or ",
            "the self-test failed with .*",
        ),
    ],
)
def test_an_emulator_that_is_wrong(
    mirror: Any, lock: Lock, tmp_path: Path, before: str, after: str, error: str, make_entry: Any
) -> None:
    from onnxopt.environments import selftest
    from onnxopt.environments.unpack import unpack

    unpack(mirror.root / lock.emulator.packages[0].file, tmp_path / "q", lambda name: name.startswith("usr/bin"))
    program = tmp_path / "q/usr/bin/qemu-aarch64"
    program.write_text(program.read_text().replace(before, after))
    with pytest.raises(TargetError, match=error):
        selftest.check(program, tmp_path, tmp_path / "python", tmp_path / "site", session.__version__)


def test_wrong_products_are_seen(mirror: Any, lock: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxopt.environments import selftest
    from onnxopt.environments.unpack import unpack

    unpack(mirror.root / lock.emulator.packages[0].file, tmp_path / "q", lambda name: name.startswith("usr/bin"))
    product = selftest._product
    monkeypatch.setattr(selftest, "_product", lambda w: product(w // 2))
    with pytest.raises(TargetError, match="calculates wrong as cortex-a53: products of integers are not exact"):
        selftest.check(tmp_path / "q/usr/bin/qemu-aarch64", tmp_path, tmp_path, tmp_path / "s", session.__version__)


def test_no_wheel_of_this_version(mirror: Any, lock: Lock, make_wheel: Any, said: list[str], cache: Path) -> None:
    for version in ("1.0", "1.2"):
        make_wheel("onnxruntime", version, TAG)
    with pytest.raises(
        TargetError, match=f"no onnxruntime=={session.__version__} for this platform: there are 1.0 to 1.2"
    ):
        arm64.set_up(Source(mirror=mirror.address, lock=lock), said.append, silent)
    assert [p.name for p in (cache / "onnxopt/targets").iterdir()] == [".lock"]


def test_a_folder_that_lacks_files(lock: Lock, said: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        TargetError, match=r"empty lacks pool/main/libc6/libc6_1\.deb: fill it by --keep with this version"
    ):
        arm64.set_up(Source(offline=tmp_path / "empty", lock=lock), said.append, silent)


def test_the_plan_fetches_nothing(server: Any, lock: Lock, tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    big = replace(lock.emulator.packages[0], size=71_089_852)
    lock = replace(lock, emulator=replace(lock.emulator, packages=(big,)))
    lines = arm64.plan(Source(mirror=address, lock=lock))
    assert lines[1] == f"from {address.rstrip('/')}: 0.0 MB for a system with Python, 71.1 MB for QEMU"
    assert (
        lines[2] == f"from the index that pip uses: ONNX Runtime {session.__version__} and numpy for ARM, about 38.0 MB"
    )
    offline = arm64.plan(Source(offline=tmp_path, lock=lock))
    assert offline[2].startswith(f"from {tmp_path}/wheels/arm64: ONNX Runtime")
    assert server.asked == []
    assert not arm64_folder().parent.exists()


def test_where_to_fetch_from(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxopt.environments import source

    monkeypatch.setattr(source, "debian_mirror", lambda: None)
    with pytest.raises(TargetError, match="apt knows no Debian mirror here: give the address of one by --mirror"):
        arm64.plan(Source())
    for address in ("ftp://a.test/debian", "debian", "http:///"[:5]):
        with pytest.raises(SpecError, match="is no address of a mirror: it begins with http://"):
            arm64.plan(Source(mirror=address))


def test_only_where_it_can_be_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arm64, "architecture", lambda: "arm64")
    with pytest.raises(TargetError, match="on x86-64 Linux only: use a real device by --target ssh"):
        arm64.plan(Source(mirror="http://127.0.0.1:9"))


# What the command does, with another lock.
CHILD = """
import sys
from pathlib import Path
from onnxopt.cli import main as _
import signal; from onnxopt.cli.main import _terminate
from onnxopt.environments.arm64 import set_up
from onnxopt.environments.lock import parse
from onnxopt.environments.source import Source
from onnxopt.progress import silent
signal.signal(signal.SIGTERM, _terminate)
set_up(Source(mirror=sys.argv[1], lock=parse(Path(sys.argv[2]).read_text())), print, silent)
"""


def test_ended_in_the_middle_nothing_is_left(server: Any, lock: Lock, tmp_path: Path, cache: Path) -> None:
    server.broken["python3.11_2.deb"] = "stall"
    (tmp_path / "lock.json").write_text(dump(lock))
    command = [sys.executable, "-c", CHILD, f"http://127.0.0.1:{server.server_address[1]}", str(tmp_path / "lock.json")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        until = time.monotonic() + 30
        while "python3.11_2.deb" not in server.asked and time.monotonic() < until:
            time.sleep(0.02)
        assert len(list(cache.glob("onnxopt/targets/.making-*"))) == 1
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 143
    assert [p.name for p in (cache / "onnxopt/targets").iterdir()] == [".lock"]


def test_two_at_once_make_it_once(mirror: Any, lock: Lock, server: Any, no_pip: None) -> None:
    address = f"http://127.0.0.1:{server.server_address[1]}"
    said: list[list[str]] = [[], []]
    done: list[str] = []

    def work(n: int) -> None:
        done.append(arm64.set_up(Source(mirror=address, lock=lock), said[n].append, silent))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line.split(":")[0] for line in done) == ["it is set up already", "set up"]
    assert sorted(server.asked) == ["libc6_1.deb", "python3.11_2.deb", "qemu-user_3.deb"]
    assert ["another set-up is running: waiting for its end"] in said
