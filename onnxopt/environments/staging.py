"""Make a folder all or nothing, and by one process at a time."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from onnxopt.errors import TargetError

_PREFIX = ".making-"


@contextmanager
def alone(parent: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other process makes something in a folder, and keep others waiting.

    What a process that was killed left there is cleared away. Raises TargetError where nothing can be written.
    """
    import fcntl  # not on Windows, where nothing of this is offered

    try:
        parent.mkdir(parents=True, exist_ok=True)
        file = (parent / ".lock").open("w")
    except OSError as error:
        raise unwritable(parent, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is running: waiting for its end")
            fcntl.flock(file, fcntl.LOCK_EX)
        for left in parent.glob(f"{_PREFIX}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A new folder in ``parent`` to make something in; it is gone afterwards, except for what ``put`` moved.

    Raises TargetError when the disk is full or cannot be written.
    """
    outer = None
    try:
        outer = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        new = outer / "new"
        new.mkdir()
        yield new
    except OSError as error:
        raise unwritable(parent, error) from error
    finally:
        if outer is not None:
            shutil.rmtree(outer, ignore_errors=True)


def put(new: Path, folder: Path) -> None:
    """Move what was made in a scratch folder to its place, instead of what is there; after an error that is back."""
    old = new.parent / "old"
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(new, folder)
    except BaseException:
        if old.exists():
            os.rename(old, folder)
        raise


def unwritable(folder: Path, error: OSError) -> TargetError:
    """The error for a folder that nothing can be made in."""
    place = f" ({error.filename})" if error.filename else ""
    remedy = "free some space there, or name another cache folder by XDG_CACHE_HOME"
    return TargetError(f"cannot write into {folder}: {error.strerror or error}{place}; {remedy}")
