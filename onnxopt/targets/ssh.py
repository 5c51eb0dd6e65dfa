"""The user's own ssh: a program on a device with pipes to it, and in words why there is none."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

from onnxopt.errors import TargetError
from onnxopt.targets.spec import Address

# Nobody is there to be asked; nothing of this machine is lent to the device; nothing stays behind on this one.
_OPTIONS = {
    "BatchMode": "yes",
    "ClearAllForwardings": "yes",
    "ConnectTimeout": "15",
    "ControlMaster": "no",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "LogLevel": "ERROR",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "ServerAliveInterval": "15",
}
# ssh's own exit code when there is no connection, and the shell's when it finds no program, or one it cannot start.
_NO_CONNECTION, _NO_PROGRAM = 255, (126, 127)
_ENDING_S = 10
_STDERR_BYTES = 1 << 16
_HINTS = {
    "IDENTIFICATION HAS CHANGED": "its host key is not the known one: if you know why, remove that with ssh-keygen -R",
    "Host key verification failed": "its host key is not known: connect once by hand and check it",
    "Permission denied": "give the device your public key (ssh-copy-id), and ssh-agent your private one: "
    "nobody can be asked for a password here",
    "Connection refused": "is ssh switched on there, and is this its port?",
    "timed out": "is the device switched on and in this network?",
    "resolve hostname": "is the name right?",
}


@dataclass(frozen=True)
class Program:
    """A program on a device: what it writes, and what is known when it is over."""

    name: str
    stdout: IO[bytes]
    _process: subprocess.Popen[bytes]
    _errors: bytearray
    _started: float
    _limit_s: float
    _threads: tuple[threading.Thread, ...]

    def end(self) -> None:
        """Wait until it is over there."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_ENDING_S)

    def refusal(self, python: str) -> TargetError:
        """Why it gave no answer: no connection, no login, no such interpreter, or something else that it said."""
        self.end()
        self._threads[-1].join(1)
        if time.monotonic() - self._started >= self._limit_s:
            return TargetError(f"{self.name} gave no answer within {self._limit_s:.3g} s")
        said = bytes(self._errors).decode("utf-8", "replace")
        last = plain(said.strip().rpartition("\n")[2]).rstrip(".")
        if "onnxopt needs Python 3.8" in said:
            return TargetError(f"{last} on {self.name}: name a newer one with ?python=...")
        if self._process.returncode in _NO_PROGRAM:
            return TargetError(
                f"there is no '{python}' that can be started on {self.name}: install Python 3.8 or newer there, "
                f"or name where it is with ?python=..."
            )
        if self._process.returncode != _NO_CONNECTION:
            return TargetError(f"{self.name} gave no answer that can be read" + (f": {last}" if last else ""))
        hint = next((f"; {hint}" for key, hint in _HINTS.items() if key in said), "")
        return TargetError(f"no connection to {self.name}: {last or 'it was lost'}{hint}")


def plain(text: str) -> str:
    """What a stranger says, on one line that is not too long, without codes that a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]


@contextlib.contextmanager
def start(address: Address, command: str, say: Iterable[bytes], limit_s: float) -> Iterator[Program]:
    """Run a command for the device's shell, say something to it, and hold the line until the context is left.

    After ``limit_s`` the connection is ended. Raises TargetError where there is no ssh here.
    """
    options = [part for key, value in _OPTIONS.items() for part in ("-o", f"{key}={value}")]
    user = ["-l", address.user] if address.user is not None else []
    port = ["-p", str(address.port)] if address.port is not None else []
    line = ["ssh", *options, *user, *port, "--", address.host, command]
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe)
    except OSError as error:
        raise TargetError(f"cannot start ssh on this machine ({error.strerror}): install OpenSSH's client") from error
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    errors = bytearray()
    threads = (
        threading.Thread(target=_say, args=(say, process.stdin), daemon=True),
        threading.Thread(target=_hear, args=(process.stderr, errors), daemon=True),
    )
    clock = threading.Timer(limit_s, process.terminate)
    try:
        for thread in (*threads, clock):
            thread.start()
        yield Program(address.name, process.stdout, process, errors, time.monotonic(), limit_s, threads)
    finally:
        clock.cancel()
        _stop(process)
        for thread in threads:
            thread.join(_ENDING_S)
        for stream in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):
                stream.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_ENDING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _say(parts: Iterable[bytes], sink: IO[bytes]) -> None:
    """The pipe stays open after the last part: that it closes tells the other side that we are gone."""
    try:
        for part in parts:
            sink.write(part)
        sink.flush()
    except OSError:  # the other side is gone, or a file here
        with contextlib.suppress(OSError):
            sink.close()


def _hear(source: IO[bytes], heard: bytearray) -> None:
    """Keep the end of what comes."""
    while chunk := source.read1(_STDERR_BYTES):  # type: ignore[attr-defined]  # Popen's pipes are buffered
        heard += chunk
        del heard[:-_STDERR_BYTES]
