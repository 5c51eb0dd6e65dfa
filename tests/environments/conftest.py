"""A Debian mirror in a folder, with packages made here, and wheels that are nearly empty."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from onnxopt.environments.lock import Lock, Package, Part

Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: str, content: bytes = b"", *, mode: int = 0o644, kind: bytes = tarfile.REGTYPE, to: str = "") -> Entry:
    """A member of an archive."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.type, info.linkname = len(content), mode, kind, to
    return info, content


def deb(entries: list[Entry], data: str = "data.tar.xz") -> bytes:
    """A Debian package."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    members = (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", b"-"),
        (data, lzma.compress(buffer.getvalue(), preset=0)),
    )
    made = b"!<arch>\n"
    for name, content in members:
        head = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n"
        made += head.encode() + content + b"\n" * (len(content) % 2)
    return made


class Mirror:
    """A mirror in a folder."""

    def __init__(self, root: Path, home: Path | None) -> None:
        self.root = root
        self.home = home

    @property
    def address(self) -> str:
        return self.root.as_uri()

    def add(self, name: str, version: str, content: bytes) -> Package:
        """Put a package into the pool."""
        file = f"pool/main/{name}/{name}_{version}.deb"
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return Package(name, version, file, len(content), hashlib.sha256(content).hexdigest())

    def remove(self, package: Package) -> None:
        (self.root / package.file).unlink()

    def publish(self, part: Part, *, codename: str | None = None) -> None:
        """Write the index of a suite, and sign it."""
        text = "\n".join(
            f"Package: {p.name}\nVersion: {p.version}\nDescription: one\n two: three\n"
            f"Filename: {p.file}\nSize: {p.size}\nSHA256: {p.sha256}\n"
            for p in part.packages
        )
        index = lzma.compress(text.encode())
        name = f"main/binary-{part.architecture}/Packages.xz"
        folder = self.root / "dists" / part.suite
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(index)
        said = f"Codename: {codename or part.suite}\nMD5Sum:\n 00 1 {name}\nSHA256:\n"
        said += f" {hashlib.sha256(index).hexdigest()} {len(index)} {name}\n"
        (folder / "Release").write_text(said)
        command = ["gpg", "--homedir", str(self.home), "--batch", "--yes", "--clearsign", "--output"]
        subprocess.run([*command, folder / "InRelease", folder / "Release"], check=True, capture_output=True)


@pytest.fixture(scope="session")
def key() -> Iterator[tuple[Path, Path]]:
    """A folder with a secret key that is thrown away, and a keyring with the public one."""
    if not (shutil.which("gpg") and shutil.which("gpgv")):
        pytest.skip("gpg and gpgv are not here")
    with tempfile.TemporaryDirectory(prefix="k") as folder:
        gpg = ["gpg", "--homedir", folder, "--batch", "--passphrase", ""]
        subprocess.run([*gpg, "--quick-gen-key", "mirror", "ed25519", "sign"], check=True, capture_output=True)
        keyring = Path(folder) / "public.gpg"
        subprocess.run([*gpg, "--export", "--output", keyring], check=True, capture_output=True)
        yield Path(folder), keyring
        subprocess.run(["gpgconf", "--homedir", folder, "--kill", "all"], capture_output=True)


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    """A mirror that cannot sign."""
    return Mirror(tmp_path / "mirror", None)


@pytest.fixture
def signing(tmp_path: Path, key: tuple[Path, Path]) -> Mirror:
    """A mirror that signs."""
    return Mirror(tmp_path / "mirror", key[0])


@pytest.fixture
def make_entry() -> Callable[..., Entry]:
    return entry


@pytest.fixture
def make_deb() -> Callable[..., bytes]:
    return deb


# Runs the runner with this Python, and says that it is ARM's.
EMULATOR = """#!/bin/sh
[ "$1" = --version ] && {{ echo "qemu-aarch64 version 10.0.99 (a fake)"; exit; }}
shift 6
exec {python} -c "import platform, sys, runpy
platform.machine = lambda: 'aarch64'
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')" "$@"
"""


@pytest.fixture
def lock(mirror: Mirror) -> Lock:
    """What an environment is made of, on the mirror: a C library, a Python, and an emulator that only seems one."""
    copyright_, program = entry("./usr/share/doc/libc6/copyright", b"free"), EMULATOR.format(python=sys.executable)
    libc = [entry("./lib/aarch64-linux-gnu/libc.so.6", b"c"), entry("./usr/share/man/man1/x.1", b"-"), copyright_]
    python = [
        entry("./usr/bin/python3.11", b"python", mode=0o4755),
        entry("./usr/share/doc/python", kind=tarfile.SYMTYPE, to="libc6"),
    ]
    emulator = [
        entry("./usr/bin/qemu-aarch64", program.encode(), mode=0o755),
        entry("./usr/bin/qemu-other", b"-"),
        entry("./usr/bin/qemu-x86_64", b"x86", mode=0o755),
        entry("./usr/share/doc/qemu-user/copyright", b"GPL"),
    ]
    system = (mirror.add("libc6", "1", deb(libc)), mirror.add("python3.11", "2", deb(python)))
    return Lock(
        Part("bookworm", "arm64", system), Part("trixie", "amd64", (mirror.add("qemu-user", "3", deb(emulator)),))
    )


@pytest.fixture
def make_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes wheels into a folder, the only place that pip looks in then."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(folder)), ("CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(f"PIP_{name}", value)

    def make(name: str, version: str, tag: str, content: str = "") -> Path:
        path, info = folder / f"{name}-{version}-{tag}.whl", f"{name}-{version}.dist-info"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(f"{name}/__init__.py", f"__version__ = '{version}'\n{content}")
            file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            file.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n")
            file.writestr(f"{info}/RECORD", "")
        return path

    return make


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder. Names in ``broken`` are not answered as they should: cut, stall, or a status."""

    broken: dict[str, str]
    asked: list[str]


class _Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        self.server.asked.append(name)
        broken = self.server.broken.get(name)
        if broken is None:
            super().do_GET()
        elif broken.isdecimal():
            self.send_error(int(broken))
        else:
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            if broken == "stall":
                stop.wait(20)

    def log_message(self, format: str, *args: object) -> None:
        pass


stop = threading.Event()


@pytest.fixture
def server(mirror: Mirror) -> Iterator[Server]:
    """The mirror on loopback."""
    mirror.root.mkdir(exist_ok=True)
    stop.clear()
    with Server(("127.0.0.1", 0), functools.partial(_Handler, directory=str(mirror.root))) as server:
        server.broken, server.asked = {}, []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        stop.set()
        server.shutdown()
        thread.join()
