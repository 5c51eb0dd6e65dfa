"""A real sshd on loopback, as whoever runs the tests, with keys of its own; nothing of the system is changed.

Where no sshd is installed, Debian's package is unpacked into a folder.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/sbin"))
_PACKAGES = ("openssh-server", "libwrap0")


class Missing(Exception):
    """Why there can be no sshd here."""


class Sshd:
    """Listens on ``port``. ``cache`` is where its sessions keep what they keep, ``bin`` a folder for interpreters."""

    def __init__(self, folder: Path, unpacked: Path) -> None:
        if not Path("/proc/self/environ").exists():
            raise Missing("what runs on the device is found in Linux's /proc")
        try:
            self.user = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            raise Missing("who runs the tests has no account to log in to") from None
        self.ssh = shutil.which("ssh")
        if not self.ssh or not shutil.which("ssh-keygen"):
            raise Missing("OpenSSH's client is not installed")
        self.folder, self.port = folder, _free_port()
        self.cache, self.bin = folder / "cache of the device", folder / "bin"
        self.bin.mkdir()
        for key in ("host", "user", "stranger"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", str(folder / key))
        shutil.copy(folder / "user.pub", folder / "authorized_keys")
        self.known(folder / "host.pub")
        self.process = self._start(*_sshd(unpacked))
        try:
            _run(str(self.client() / "ssh"), "-p", str(self.port), "127.0.0.1", "true")
        except Missing:
            self.stop()
            raise

    def _start(self, program: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        config = self.folder / "sshd_config"
        config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.folder}/host\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self.folder}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
            f'KbdInteractiveAuthentication no\nPermitRootLogin yes\nSetEnv "XDG_CACHE_HOME={self.cache}"\n'
        )
        log = (self.folder / "log").open("wb")
        command = [program, "-D", "-e", "-f", str(config)]
        if os.getuid() == 0:
            command = _as_root(command, self.folder)
        process = subprocess.Popen(command, env=environment, stderr=log, stdout=log)
        log.close()
        for _ in range(100):
            if process.poll() is not None:
                raise Missing("sshd does not start: " + (self.folder / "log").read_text().strip())
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return process
            time.sleep(0.05)
        process.kill()
        raise Missing("sshd does not listen")

    def known(self, key: Path) -> None:
        """Make this the host key that the client knows."""
        kind, value = key.read_text().split()[:2]
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {value}\n")

    def client(self, identity: str = "user") -> Path:
        """A folder with an ``ssh`` in it that uses only what is here, as ~/.ssh/config would say."""
        place = self.folder / f"client {identity}"
        place.mkdir(exist_ok=True)
        config = place / "config"
        config.write_text(
            f'IdentityFile "{self.folder}/{identity}"\nIdentitiesOnly yes\nIdentityAgent none\n'
            f'StrictHostKeyChecking yes\nUserKnownHostsFile "{self.folder}/known_hosts"\n'
            f"GlobalKnownHostsFile none\nUser {self.user}\n"
        )
        _script(place / "ssh", f'exec {self.ssh} -F {shlex.quote(str(config))} "$@"')
        return place

    def stand_in(self) -> Path:
        """A folder with an ``ssh`` in it that runs the command here, without a connection: faster."""
        place = self.folder / "stand-in"
        place.mkdir(exist_ok=True)
        cache = shlex.quote(str(self.cache))
        _script(place / "ssh", f'for command; do :; done; XDG_CACHE_HOME={cache} exec sh -c "$command"')
        return place

    def interpreter(self, name: str, body: str) -> str:
        """A shell script to stand in for Python there."""
        return _script(self.bin / name, body)

    def sessions(self) -> list[int]:
        """The processes of sshd that serve connections."""
        found, parents = [self.process.pid], _parents()
        for _ in range(3):
            found += [pid for pid, parent in parents.items() if parent in found and pid not in found]
        return [pid for pid in found[1:] if b"sshd" in _read(pid, "cmdline")]

    def processes(self) -> list[int]:
        """What runs on the device: the far end, known by its environment, and the runner, by the folder it runs in."""
        cache = os.fsencode(self.cache)
        return [pid for pid in _parents() if cache in _read(pid, "cmdline") or cache in _read(pid, "environ")]

    def runners(self) -> list[int]:
        """The runners among them."""
        return [pid for pid in self.processes() if b"runner.py" in _read(pid, "cmdline")]

    def left(self) -> list[str]:
        """What lies on the device."""
        return sorted(os.path.join(at, name) for at, folders, files in os.walk(self.cache) for name in folders + files)

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(10)


def _sshd(unpacked: Path) -> tuple[str, dict[str, str]]:
    """Where sshd is, and the environment it needs."""
    if found := shutil.which("sshd", path=_PATH):
        return found, dict(os.environ)
    if not unpacked.is_dir():
        _unpack(unpacked)
    libraries = os.pathsep.join(str(p) for p in sorted((unpacked / "usr/lib").glob("*-linux-gnu*")))
    return str(unpacked / "usr/sbin/sshd"), {**os.environ, "LD_LIBRARY_PATH": libraries}


def _unpack(into: Path) -> None:
    """Get Debian's packages, by the system's lists of them or fresh ones, and unpack them; all or nothing."""
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        raise Missing("no sshd is installed, and there is no apt-get to get one with")
    try:
        into.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into.parent) as name:
            work = Path(name)
            for folder in ("lists/partial", "archives/partial", "root"):
                (work / folder).mkdir(parents=True)
            try:
                _run("apt-get", "download", "-qq", *_PACKAGES, cwd=work)
            except Missing:
                apt = ("apt-get", "-o", f"Dir::State::lists={work}/lists", "-o", f"Dir::Cache={work}/archives", "-qq")
                _run(*apt, "update", cwd=work)
                _run(*apt, "download", *_PACKAGES, cwd=work)
            for package in sorted(work.glob("*.deb")):
                _run("dpkg", "-x", str(package), str(work / "root"))
            with contextlib.suppress(OSError):  # tests beside these were faster
                (work / "root").rename(into)
    except OSError as error:
        raise Missing(f"no sshd is installed, and none can be unpacked: {error}") from error
    if not into.is_dir():
        raise Missing("no sshd is installed, and none could be unpacked")


def _as_root(command: list[str], folder: Path) -> list[str]:
    """As root, sshd wants a user and a folder for the part of it that talks to strangers.

    They are there for it alone, in mounts that no other process sees; and root's shell is one that starts fast.
    """
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        if "sshd" in {entry.pw_name for entry in pwd.getpwall()} and Path("/run/sshd").is_dir():
            return command
        raise Missing("sshd, run as root, needs the user 'sshd' and /run/sshd: install openssh-server")
    users = {line.split(":")[0]: line.split(":") for line in Path("/etc/passwd").read_text().splitlines()}
    users.setdefault("sshd", ["sshd", "x", "65533", "65534", "", "/run/sshd", "/usr/sbin/nologin"])
    users["root"][-1] = "/bin/sh"
    passwd = folder / "passwd"
    passwd.write_text("".join(":".join(user) + "\n" for user in users.values()))
    mounts = (
        f"mount --bind {shlex.quote(str(passwd))} /etc/passwd && mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd"
    )
    return ["unshare", "-m", "sh", "-c", f"{mounts} && exec {shlex.join(command)}"]


def _parents() -> dict[int, int]:
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            found[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return found


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def _run(*command: str, cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        raise Missing(f"{command[0]} takes too long") from None
    if done.returncode:
        raise Missing(f"{command[0]} fails: {done.stderr.strip()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
