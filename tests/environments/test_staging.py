import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from onnxopt.environments.staging import alone, put, scratch
from onnxopt.errors import TargetError


def make(folder: Path, content: str) -> None:
    with scratch(folder.parent) as new:
        (new / "file").write_text(content)
        put(new, folder)


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    for content in ("first", "second"):
        make(tmp_path / "made", content)
        assert (tmp_path / "made/file").read_text() == content
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), ValueError()], ids=lambda e: type(e).__name__)
def test_an_interrupted_one_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    make(tmp_path / "made", "first")

    def interrupted() -> None:
        with scratch(tmp_path) as new:
            (new / "file").write_text("half")
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == ["made"]
    assert (tmp_path / "made/file").read_text() == "first"


def test_what_cannot_be_moved_is_put_back(tmp_path: Path) -> None:
    make(tmp_path / "made", "first")

    def empty() -> None:
        with scratch(tmp_path) as new:
            new.rmdir()
            put(new, tmp_path / "made")

    with pytest.raises(TargetError, match=r"No such file or directory.*another cache folder by XDG_CACHE_HOME"):
        empty()
    assert (tmp_path / "made/file").read_text() == "first"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk(tmp_path: Path) -> None:
    def write() -> None:
        with scratch(tmp_path) as new:
            (new / "file").symlink_to("/dev/full")
            (new / "file").write_text("x")

    with pytest.raises(TargetError, match=f"cannot write into {tmp_path}: No space left on device; free some space"):
        write()
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TargetError, match=r"cannot write into .*/file/targets: Not a directory"):
        alone(tmp_path / "file/targets", print).__enter__()


def test_one_waits_for_the_other(tmp_path: Path) -> None:
    order, said, inside = [], [], threading.Event()

    def first() -> None:
        with alone(tmp_path, said.append):
            inside.set()
            while not said:
                pass
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(10)
    with alone(tmp_path, said.append):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert said == ["another set-up is running: waiting for its end"]


def test_what_a_killed_one_left_is_cleared_away(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from onnxopt.environments.staging import *\n"
        "with alone(Path(sys.argv[1]), print), scratch(Path(sys.argv[1])) as new: os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=os.environ)
    assert done.returncode == -9
    assert len(list(tmp_path.glob(".making-*"))) == 1
    with alone(tmp_path, print):
        assert [p.name for p in tmp_path.iterdir()] == [".lock"]
