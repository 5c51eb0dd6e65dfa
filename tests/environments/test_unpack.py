import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxopt.environments import unpack as room
from onnxopt.environments.unpack import unpack
from onnxopt.errors import TargetError

SYM, HARD, FOLDER = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE


@pytest.fixture
def put(tmp_path: Path, make_deb: Callable[..., bytes], make_entry: Callable[..., Any]) -> Callable[..., Path]:
    """Unpacks members, given as (name, content) or (name, kind, where it leads)."""

    def work(*members: Any, wanted: Callable[[str], bool] = lambda _: True) -> Path:
        entries = [m if isinstance(m[0], tarfile.TarInfo) else make_entry(*m[:1], **m[1]) for m in members]
        (tmp_path / "p.deb").write_bytes(make_deb(entries))
        unpack(tmp_path / "p.deb", tmp_path / "root", wanted)
        return tmp_path / "root"

    return work


def file(name: str, content: bytes = b"x", mode: int = 0o644) -> Any:
    return name, {"content": content, "mode": mode}


def link(name: str, to: str, kind: bytes = SYM) -> Any:
    return name, {"kind": kind, "to": to}


def test_files_links_and_rights(put: Callable[..., Path]) -> None:
    root = put(
        ("./usr", {"kind": FOLDER, "mode": 0o700}),
        file("./usr/bin/sudo", b"root", 0o4755),
        file("./usr/bin/note", b"text", 0o2600),
        link("./usr/bin/other", "./usr/bin/sudo", HARD),
        link("./usr/bin/short", "note"),
        link("./usr/lib/up", "../bin/note"),
        file("./usr/share/doc/x", b"no"),
        wanted=lambda name: not name.startswith("usr/share"),
    )
    assert {p.name: p.read_bytes() for p in root.rglob("*") if p.is_file()} == {
        **{"sudo": b"root", "other": b"root", "note": b"text", "short": b"text", "up": b"text"}
    }
    assert [(root / "usr/bin" / name).stat().st_mode & 0o7777 for name in ("sudo", "note")] == [0o755, 0o644]
    assert not (root / "usr/share").exists()


def test_absolute_links_are_meant_within_the_system(put: Callable[..., Path]) -> None:
    root = put(
        file("./usr/lib/ld.so", b"loader"),
        link("./lib", "/usr/lib"),
        file("./lib/libc.so", b"c"),
        link("./lib/ld.so.1", "/lib/ld.so"),
        link("./usr/lib/later", "/etc/alternatives/later"),
        link("./lib/deep", "libc.so"),
    )
    assert (root / "usr/lib/libc.so").read_bytes() == b"c"
    assert (root / "lib/ld.so.1").read_bytes() == b"loader"
    assert (root / "usr/lib/deep").read_bytes() == b"c"
    assert str((root / "usr/lib/later").readlink()) == "../../etc/alternatives/later"


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([file("/etc/passwd")], "holds the path '/etc/passwd', which leads elsewhere"),
        ([file("./usr/../../x")], "holds the path './usr/../../x', which leads elsewhere"),
        ([link("./up", "..")], "links 'up' to '..', which leads elsewhere"),
        ([link("./usr/up", "../../x")], r"links 'usr/up' to '../../x', which leads elsewhere"),
        ([link("./a", "/../../etc")], "links 'a' to '/../../etc', which leads elsewhere"),
        ([link("./d/a", "."), link("./b", "d/a/../.."), file("./b/x")], "links 'b' to 'd/a/../..'"),
        ([link("./d/e/a", "../.."), link("./n/b", "../d/e/a/../x")], "which leads elsewhere"),
        ([link("./d/e/a", "b/../../../x"), link("./d/e/b", "../..")], "links 'd/e/a' to 'b/../../../x'"),
        ([link("./x", "/etc/passwd", HARD)], "holds the path '/etc/passwd'"),
        ([link("./x", "./none", HARD)], "links 'x' to a file that is not in it"),
        ([("./dev/sda", {"kind": tarfile.BLKTYPE})], "holds 'dev/sda', which is neither a file nor a link"),
        ([("./dev/tty", {"kind": tarfile.CHRTYPE})], "neither a file nor a link"),
        ([("./pipe", {"kind": tarfile.FIFOTYPE})], "neither a file nor a link"),
    ],
)
def test_hostile_members_are_refused(put: Callable[..., Path], tmp_path: Path, members: Any, said: str) -> None:
    with pytest.raises(TargetError, match=f"the package p.deb .*{said}.*: it was not unpacked"):
        put(*members)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.deb", "root"]


def test_a_link_that_was_there_is_not_written_through(put: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "root/a").symlink_to(tmp_path / "outside")
    (tmp_path / "root/f").symlink_to(tmp_path / "outside/f")
    with pytest.raises(TargetError, match="writes 'a/x' through a link that leads elsewhere"):
        put(file("./a/x"))
    put(file("./f"))
    assert not list((tmp_path / "outside").iterdir())


def test_bounds(put: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_MOST_BYTES", 1000)
    put(file("./a", b"x" * 900))
    with pytest.raises(TargetError, match="holds more than any package does"):
        put(file("./a", b"x" * 900), file("./b", b"x" * 101))
    monkeypatch.setattr(room, "_MOST_MEMBERS", 2)
    with pytest.raises(TargetError, match="holds more than any package does"):
        put(*(file(f"./{i}") for i in range(4)))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda b: b"", "it is no ar archive"),
        (lambda b: b[:100], "it was cut off|it holds no files"),
        (lambda b: b[:2000], "damaged"),
        (lambda b: b[:300] + b"\0" * 40 + b[340:], "damaged"),
        (lambda b: b.replace(b"data.tar.xz ", b"data.tar.zst"), "is packed as data.tar.zst, which is not read here"),
    ],
)
def test_damaged_packages(
    tmp_path: Path, make_deb: Callable[..., bytes], make_entry: Callable[..., Any], damage: Any, said: str
) -> None:
    import random

    content = random.Random(0).randbytes(4000)
    (tmp_path / "p.deb").write_bytes(damage(make_deb([make_entry("./a", content)])))
    with pytest.raises(TargetError, match=said):
        unpack(tmp_path / "p.deb", tmp_path / "root", lambda _: True)
