"""A real device, over the user's own ssh.

One connection does it all: there go the far end's program, the runner, the models and the feeds, and back come the
outputs. Nothing is kept on the device, so nothing there grows old, and nothing has to be cleaned up.
"""

from __future__ import annotations

import json
import re
import secrets
import shlex
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from onnxopt.errors import ExecutionError, ExternalDataError, TargetError
from onnxopt.graph.io import files_of
from onnxopt.runtime import runner
from onnxopt.runtime.exchange import Answer, Job, answer_of, pack, unpack
from onnxopt.targets import far_end
from onnxopt.targets.spec import Address
from onnxopt.targets.ssh import Program, plain, start

# Starts the far end, whatever the shell and whatever lies in the folder that a login begins in. Python 2 reads it too.
_START = (
    "import sys; sys.path = [p for p in sys.path if p]; "
    "sys.version_info < (3, 8) and sys.exit('onnxopt needs Python 3.8 or newer, not ' + sys.version.split()[0]); "
    "exec(sys.stdin.buffer.read({size}))"
)
# The slowest line we wait for, and what else may take time: connecting, starting Python, writing to a slow card.
_BYTES_PER_S = 100_000
_CHUNK_BYTES = 1 << 20
# More than an honest device says: what a login prints, the far end's own line, stdout and stderr, and the outputs.
_LIMIT_NOISE, _LIMIT_LINE, _LIMITS = 1 << 20, 1 << 12, (1 << 26, 1 << 16, 1 << 32)
# No space left; quota exceeded; file too large.
_FULL = (28, 122, 27)


@dataclass(frozen=True)
class Device:
    """A device behind ssh. ``patience_s``: what a job may take beside the models' own time and sending them."""

    address: Address
    timed: bool = True
    slowdown: float = 100
    slowdown_int8: float = 100
    patience_s: float = 60

    @property
    def how(self) -> str:
        """In words."""
        return "on the device, by ssh"

    def probe(self) -> Answer:
        """What is there: versions, architecture, execution providers. Raises as ``run`` does."""
        return self.run(Job(models=(), feeds=()))

    def run(self, job: Job) -> Answer:
        """Run a job there.

        Raises TargetError where the device cannot be reached or lacks what is needed, ExecutionError where a model
        fails there, takes longer than ``job.timeout_s``, or what comes back is not whole.
        """
        job = replace(job, threads=self.address.threads or job.threads)
        with tempfile.TemporaryDirectory(prefix="onnxopt-") as place:
            folder = Path(place)
            files = _files(job, folder)
            program = Path(far_end.__file__).read_bytes()
            token = secrets.token_hex(16)
            python = _python(self.address.python)
            wanted = {
                "token": token,
                "python": python,
                "limit_s": job.timeout_s,
                "files": [(name, path.stat().st_size) for name, path in files.items()],
            }
            head = program + json.dumps(wanted).encode() + b"\n"
            size = len(head) + sum(path.stat().st_size for path in files.values())
            limit_s = job.timeout_s + self.patience_s + size / _BYTES_PER_S
            command = f'exec {shlex.quote(python)} -c "{_START.format(size=len(program))}"'
            with start(self.address, command, _contents(head, files), limit_s) as there:
                code, stdout, stderr = self._receive(there, token, job, folder)
                there.end()
            return self._judge(code, stdout, stderr, folder)

    def _receive(self, there: Program, token: str, job: Job, folder: Path) -> tuple[int, bytes, bytes]:
        """Exit code, standard output and error of the runner; its outputs go into the folder."""
        try:
            _skip_to(there.stdout, token)
            head = there.stdout.readline(_LIMIT_LINE)
            if not head:
                raise EOFError
            said = json.loads(head)
            if "error" in said:
                raise _no_room(self.address, said["errno"], str(said["error"]))
            if said["code"] is None:
                raise ExecutionError(f"the model ran longer than {job.timeout_s:g} s on {self.address.name}")
            code, sizes = int(said["code"]), [int(size) for size in said["sizes"]]
            if len(sizes) != len(_LIMITS) or not all(0 <= s <= most for s, most in zip(sizes, _LIMITS, strict=True)):
                raise ValueError("sizes")
            stdout, stderr = (_exactly(there.stdout, size) for size in sizes[:2])
            if sizes[2]:
                with (folder / "outputs.npz").open("wb") as file:
                    for at in range(0, sizes[2], _CHUNK_BYTES):
                        file.write(_exactly(there.stdout, min(_CHUNK_BYTES, sizes[2] - at)))
            return code, stdout, stderr
        except EOFError:
            raise there.refusal(self.address.python) from None
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise TargetError(f"{self.address.name} gave an answer that cannot be read") from None

    def _judge(self, code: int, stdout: bytes, stderr: bytes, folder: Path) -> Answer:
        """The answer, once what came back is known to be what it says."""
        where = f"on {self.address.name}"
        code = 128 - code if code > 128 else code  # as a shell tells of a signal
        try:
            said = answer_of(stdout, plain(stderr.decode("utf-8", "replace")[-300:]).encode(), code, where)
            _check_archive(folder / "outputs.npz")
            a = unpack(said, folder, where)
            ort, np, python, machine = map(plain, (a.onnxruntime, a.numpy, a.python, a.machine))  # they are shown
            return replace(a, onnxruntime=ort, numpy=np, python=python, machine=machine)
        except ExecutionError as error:
            full = re.search(r"\[Errno (\d+)\]", str(error))
            if full and int(full[1]) in _FULL:
                raise _no_room(self.address, int(full[1]), str(error)) from None
            raise ExecutionError(plain(str(error))) from error
        except (zipfile.BadZipFile, EOFError, MemoryError, RuntimeError) as error:
            raise ExecutionError(f"what came back from {self.address.name} is damaged") from error


def _python(name: str) -> str:
    """The interpreter as the device's shell finds it: quoted, it does not know a tilde, but starts at home."""
    return "./" + name[2:] if name.startswith("~/") else name


def _files(job: Job, folder: Path) -> dict[str, Path]:
    """What goes to the device: names there and files here. Each model gets a folder, its data keep their places in it.

    Raises ModelError for what is no model, ExternalDataError for one whose data lie outside its own folder.
    """
    found = {"runner.py": Path(runner.__file__)}
    models = []
    for i, model in enumerate(job.models):
        models.append(f"{i}/onnxopt.onnx")
        found[models[-1]] = model
        for file in files_of(model)[1:]:
            found[f"{i}/{_place(file, model)}"] = file
    found["request.json"] = pack(job, folder, models, ())
    found["feeds.npz"] = folder / "feeds.npz"
    return found


def _place(file: Path, model: Path) -> str:
    """Where a file of weights lies, seen from its model's folder, which it must be in."""
    place = file.relative_to(model.parent) if file.is_relative_to(model.parent) else Path("..")
    if ".." in place.parts or not file.resolve().is_relative_to(model.parent.resolve()):
        raise ExternalDataError(f"{model} keeps data outside its folder, in {file}: it cannot go to a device")
    return place.as_posix()


def _contents(head: bytes, files: dict[str, Path]) -> Iterator[bytes]:
    yield head
    for path in files.values():
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk


def _skip_to(source: IO[bytes], token: str) -> None:
    """Read up to the line with the token. Raises EOFError, and ValueError where too much else comes."""
    skipped = 0
    while (line := source.readline(_LIMIT_LINE)) != token.encode() + b"\n":
        skipped += len(line)
        if not line:
            raise EOFError
        if skipped > _LIMIT_NOISE:
            raise ValueError("no token")


def _exactly(source: IO[bytes], size: int) -> bytes:
    """So many bytes. Raises EOFError."""
    content = source.read(size)
    if len(content) < size:
        raise EOFError
    return content


def _check_archive(path: Path) -> None:
    """Raises BadZipFile for an archive that could unpack to more than came."""
    if path.exists():
        with zipfile.ZipFile(path) as archive:
            if any(m.compress_type != zipfile.ZIP_STORED or m.file_size > m.compress_size for m in archive.infolist()):
                raise zipfile.BadZipFile(path.name)


def _no_room(address: Address, number: Any, error: str) -> TargetError:
    if number in _FULL:
        return TargetError(f"{address.name} has no room for the job, in ~/.cache or $XDG_CACHE_HOME: {plain(error)}")
    return TargetError(f"{address.name} cannot do the job: {plain(error)}")
