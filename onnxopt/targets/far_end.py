"""The far end of a connection to a device: runs one job there, for as long as the connection stands.

It is sent over the connection before its input, and needs only Python 3.8. The input is a line of JSON:
    token    what the answer begins with, so that nothing that a login prints is taken for it
    python   the interpreter that runs the runner
    limit_s  how long the runner may take
    files    names and sizes of the files whose contents follow, runner.py and request.json among them
After the input nothing more comes: that it ends means that the connection is gone, and then the runner is killed.

The answer is a line with the token, a line of JSON, and what it gives the sizes of, one after the other:
    code     exit code of the runner; negative: the signal that ended it; null: it took too long
    sizes    of its standard output, of the end of its standard error, and of the outputs that it wrote
or, where the job could not be done, errno and error alone. Whatever happens, the folder of the job is removed.
"""

from __future__ import annotations

import contextlib
import glob
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

CHUNK_BYTES = 1 << 20
STDERR_BYTES = 1 << 16
# Folders this old are of jobs whose device lost its power: no job takes that long.
STALE_S = 7 * 24 * 3600
KEPT = ("HOME", "LD_LIBRARY_PATH", "PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR")
SET = {"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}


def main(source: BinaryIO, sink: BinaryIO) -> None:
    """Do the job that comes from the source, and write the answer."""
    for name in ("SIGHUP", "SIGTERM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: sys.exit(1))
    request = json.loads(source.readline())
    sink.write(b"\n%s\n" % request["token"].encode())
    try:
        with job_folder() as folder:
            receive(source, folder, request["files"])
            code, said, complaint = run(folder, request)
            output = os.path.join(folder, "outputs.npz")
            sizes = [len(said), len(complaint), os.path.getsize(output) if os.path.exists(output) else 0]
            sink.write(json.dumps({"code": code, "sizes": sizes}).encode() + b"\n" + said + complaint)
            if sizes[2]:
                with open(output, "rb") as file:
                    shutil.copyfileobj(file, sink, CHUNK_BYTES)
            sink.flush()
    except BrokenPipeError:
        os._exit(1)  # nobody is there to hear of it, and the folder is gone
    except OSError as error:
        sink.write(json.dumps({"errno": error.errno, "error": str(error)}).encode() + b"\n")
        sink.flush()


@contextlib.contextmanager
def job_folder() -> Iterator[str]:
    """A new folder, for this user alone, that is removed in the end."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    base = base if os.path.isabs(base) else os.path.join(os.path.expanduser("~"), ".cache")
    os.makedirs(base, exist_ok=True)
    for path in glob.glob(os.path.join(glob.escape(base), "onnxopt-job-*")):
        with contextlib.suppress(OSError):
            if time.time() - os.path.getmtime(path) > STALE_S:
                shutil.rmtree(path, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix="onnxopt-job-", dir=base)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def receive(source: BinaryIO, folder: str, files: list[Any]) -> None:
    """Write the files that come. The program ends where they do not come whole."""
    for name, size in files:
        path = os.path.join(folder, *name.split("/"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            while size:
                chunk = source.read(min(size, CHUNK_BYTES))
                if not chunk:
                    sys.exit(1)
                file.write(chunk)
                size -= len(chunk)


def run(folder: str, request: dict[str, Any]) -> tuple[int | None, bytes, bytes]:
    """Exit code, standard output and the end of standard error of the runner."""
    command = [request["python"], os.path.join(folder, "runner.py"), os.path.join(folder, "request.json")]
    environment = {key: os.environ[key] for key in KEPT if key in os.environ}
    environment.update(SET)
    pipe = subprocess.PIPE
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=environment, start_new_session=True
    )
    try:
        threading.Thread(target=watch, args=(child,), daemon=True).start()
        said, complaint = child.communicate(timeout=request["limit_s"])
        return child.returncode, said, complaint[-STDERR_BYTES:]
    except subprocess.TimeoutExpired:
        return None, b"", b""
    finally:
        kill(child)
        child.wait()


def watch(child: Any) -> None:
    """Kill the runner when the connection is gone."""
    with contextlib.suppress(OSError):
        while os.read(0, io.DEFAULT_BUFFER_SIZE):
            pass
    kill(child)


def kill(child: Any) -> None:
    """Kill the runner, and what it may have started."""
    with contextlib.suppress(OSError):
        if child.poll() is not None:
            return
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
