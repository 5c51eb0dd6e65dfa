import errno
import hashlib
from pathlib import Path
from typing import Any

import pytest

from onnxopt.environments import fetch as room
from onnxopt.environments.fetch import GoneError, fetch
from onnxopt.errors import TargetError
from onnxopt.progress import silent

CONTENT = bytes(range(256)) * 40
SUM = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def served(mirror: Any, server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    (mirror.root / "a.deb").write_bytes(CONTENT)
    monkeypatch.setattr(room.time, "sleep", lambda _: None)
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    return server


def get(address: str, path: Path, *, size: int = len(CONTENT), sha256: str | None = SUM) -> None:
    fetch(address, path, silent, size=size, sha256=sha256)


def nothing_in(folder: Path) -> bool:
    return not [p for p in folder.rglob("*") if p.is_file()]


def test_a_file_comes_whole_and_only_once(served: Any, tmp_path: Path) -> None:
    path = tmp_path / "got/a.deb"
    for _ in range(2):
        get(f"{served.url}/a.deb", path)
    assert path.read_bytes() == CONTENT
    assert served.asked == ["a.deb"]
    path.write_bytes(b"damaged since")
    get(f"{served.url}/a.deb", path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("broken", "tries", "said"),
    [
        ("cut", 3, "it was cut off after 5120 of 10240 bytes; use --offline"),
        ("503", 3, "the server says 503 Service Unavailable; use --offline"),
    ],
)
def test_what_breaks_is_tried_again(served: Any, tmp_path: Path, broken: str, tries: int, said: str) -> None:
    served.broken["a.deb"] = broken
    with pytest.raises(TargetError, match=said):
        get(f"{served.url}/a.deb", tmp_path / "got/a.deb")
    assert len(served.asked) == tries
    assert nothing_in(tmp_path / "got")


def test_what_is_gone_is_not_tried_again(served: Any, tmp_path: Path) -> None:
    with pytest.raises(GoneError, match=r"b\.deb does not exist"):
        get(f"{served.url}/b.deb", tmp_path / "got/b.deb")
    assert served.asked == ["b.deb"]
    with pytest.raises(GoneError):
        get((tmp_path / "none").as_uri(), tmp_path / "got/b.deb")


@pytest.mark.parametrize(
    ("size", "sha256", "said"),
    [
        (len(CONTENT), "0" * 64, "its SHA-256 differs"),
        (len(CONTENT) - 1, SUM, "larger than it should be"),
        (len(CONTENT) - 1, None, "larger than it should be"),
    ],
)
def test_another_file_is_refused(served: Any, tmp_path: Path, size: int, sha256: str | None, said: str) -> None:
    with pytest.raises(TargetError, match=f"{said}.*: try another --mirror"):
        get(f"{served.url}/a.deb", tmp_path / "got/a.deb", size=size, sha256=sha256)
    assert nothing_in(tmp_path / "got")


def test_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.time, "sleep", lambda _: None)
    with pytest.raises(TargetError, match=r"refused; use --offline .* or a real device by --target ssh://user@host"):
        get("http://127.0.0.1:9/a.deb", tmp_path / "a.deb")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_no_trouble_with_the_connection(served: Any, tmp_path: Path) -> None:
    (tmp_path / "a.deb.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space") as raised:
        get(f"{served.url}/a.deb", tmp_path / "a.deb")
    assert raised.value.errno == errno.ENOSPC
    assert served.asked == ["a.deb"]
