import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onnxopt.environments import debian
from onnxopt.environments.debian import Mirror
from onnxopt.environments.lock import Part, dump, parse, shipped
from onnxopt.errors import TargetError
from onnxopt.progress import silent


@pytest.fixture
def pinned(signing: Any) -> Part:
    """Two packages of a signed suite."""
    part = Part("bookworm", "arm64", (signing.add("libc6", "1", b"old c"), signing.add("zlib1g", "1", b"old z")))
    signing.publish(part)
    return part


@pytest.fixture
def moved(signing: Any, pinned: Part) -> Part:
    """The same suite after a point release: one is newer, its predecessor is gone."""
    newer = replace(pinned, packages=(signing.add("libc6", "2", b"new c"), pinned.packages[1]))
    signing.publish(newer)
    signing.remove(pinned.packages[0])
    return newer


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def client(signing: Any, key: Any, tmp_path: Path, said: list[str]) -> Mirror:
    return Mirror(signing.address, tmp_path / "got", said.append, silent, (tmp_path / "none", key[1]))


def test_pinned_packages_need_no_index(signing: Any, client: Mirror, pinned: Part, said: list[str]) -> None:
    shutil.rmtree(signing.root / "dists")
    assert client.obtain(pinned) == pinned
    assert client.path(pinned.packages[0]).read_bytes() == b"old c"
    assert said == []


def test_newer_ones_by_the_signed_index(client: Mirror, pinned: Part, moved: Part, said: list[str]) -> None:
    assert client.obtain(pinned) == moved
    assert client.path(moved.packages[0]).read_bytes() == b"new c"
    assert said == ["the mirror has newer packages of bookworm, its signature is good: libc6 2"]


@pytest.mark.parametrize("keyrings", [(), (Path("/none.gpg"),)])
def test_newer_ones_cannot_be_trusted_without_a_keyring(
    client: Mirror, pinned: Part, moved: Part, keyrings: tuple[Path, ...]
) -> None:
    with pytest.raises(TargetError, match="without gpgv and debian-archive-keyring: install these two"):
        replace(client, keyrings=keyrings).obtain(pinned)


def test_newer_ones_cannot_be_trusted_without_gpgv(
    client: Mirror, pinned: Part, moved: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(TargetError, match="without gpgv"):
        client.obtain(pinned)


def test_a_signature_that_is_not_debians(signing: Any, client: Mirror, pinned: Part, moved: Part) -> None:
    release = signing.root / "dists/bookworm/InRelease"
    release.write_text(release.read_text().replace("Codename: bookworm", "Codename: bookworm "))
    client.obtain(pinned)  # spaces at the end of a line are not signed
    release.write_text(re.sub(r"(?m)^ [0-9a-f]{64}", " " + "0" * 64, release.read_text()))
    with pytest.raises(TargetError, match=r"the signature of bookworm on file://.* is not Debian's: try another"):
        client.obtain(pinned)
    release.write_text("no signature at all")
    with pytest.raises(TargetError, match="is not Debian's"):
        client.obtain(pinned)


def test_what_stands_around_the_signed_text_is_not_read(
    signing: Any, client: Mirror, pinned: Part, moved: Part
) -> None:
    release = signing.root / "dists/bookworm/InRelease"
    signed = release.read_text()
    signing.publish(replace(moved, packages=(signing.add("libc6", "3", b"hostile c"), moved.packages[1])))
    release.write_text((signing.root / "dists/bookworm/Release").read_text() + "\n" + signed)
    with pytest.raises(TargetError, match=r"SHA-256 differs|larger than|cut off|is not Debian's"):
        client.obtain(pinned)


def test_an_index_that_is_not_the_signed_one(signing: Any, client: Mirror, pinned: Part, moved: Part) -> None:
    index = signing.root / "dists/bookworm/main/binary-arm64/Packages.xz"
    content = bytearray(index.read_bytes())
    content[40] ^= 1
    index.write_bytes(content)
    with pytest.raises(TargetError, match="SHA-256 differs"):
        client.obtain(pinned)


def test_another_suite_is_refused(signing: Any, client: Mirror, pinned: Part, moved: Part) -> None:
    signing.publish(moved, codename="sid")
    with pytest.raises(TargetError, match="what the mirror gives for bookworm is another suite"):
        client.obtain(pinned)


def test_a_suite_without_the_package(signing: Any, client: Mirror, pinned: Part, moved: Part) -> None:
    signing.publish(replace(moved, packages=moved.packages[:1]))
    with pytest.raises(TargetError, match="has no zlib1g: a newer onnxopt may know"):
        client.obtain(pinned)


def test_no_mirror_of_debian(client: Mirror, pinned: Part, tmp_path: Path) -> None:
    elsewhere = replace(client, address=(tmp_path / "none").as_uri())
    with pytest.raises(TargetError, match="has neither the packages that are wanted nor an index of Debian bookworm"):
        elsewhere.obtain(pinned)
    (tmp_path / "none/dists/bookworm").mkdir(parents=True)


def test_a_mirror_that_lacks_what_it_lists(signing: Any, client: Mirror, pinned: Part) -> None:
    signing.remove(pinned.packages[0])
    with pytest.raises(TargetError, match=r"libc6_1\.deb does not exist"):
        client.obtain(pinned)


def test_an_index_of_another_processor(signing: Any, client: Mirror, pinned: Part, moved: Part) -> None:
    with pytest.raises(TargetError, match=r"has no main/binary-amd64/Packages\.xz for bookworm"):
        client.obtain(replace(pinned, architecture="amd64"))


def test_a_path_that_leads_elsewhere(client: Mirror, pinned: Part) -> None:
    hostile = replace(pinned.packages[0], file="pool/../../outside.deb")
    with pytest.raises(TargetError, match="which no mirror has"):
        client.obtain(replace(pinned, packages=(hostile,)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no xz", "the index Packages.xz is damaged"),
        (b"", "the index Packages.xz is damaged"),
    ],
)
def test_a_damaged_index(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "Packages.xz").write_bytes(content)
    with pytest.raises(TargetError, match=said):
        list(debian._paragraphs(tmp_path / "Packages.xz"))


def test_a_package_without_a_sum() -> None:
    with pytest.raises(TargetError, match="the index tells no 'SHA256' of a"):
        debian._package({"Package": "a", "Version": "1", "Filename": "a.deb", "Size": "1"})


def test_the_lock_that_ships() -> None:
    lock = shipped()
    assert parse(dump(lock)) == lock
    assert (lock.system.architecture, lock.emulator.architecture) == ("arm64", "amd64")
    assert [p.name for p in lock.emulator.packages] == ["qemu-user"]
    assert {"libc6", "libstdc++6", "python3.11-minimal", "libpython3.11-stdlib"} <= {
        p.name for p in lock.system.packages
    }
    packages = (*lock.system.packages, *lock.emulator.packages)
    assert all(re.fullmatch("[0-9a-f]{64}", p.sha256) and p.file.endswith(".deb") for p in packages)
    assert lock.system.size == 7_565_120
    assert lock.emulator.size == 71_089_852
