from pathlib import Path

import pytest

from onnxopt.environments.apt import debian_mirror

STANZA = """# a comment
Types: deb deb-src
URIs: http://one.test/debian/
  https://two.test/debian
Suites: bookworm bookworm-updates
Components: main
"""


def apt(folder: Path, **files: str) -> Path:
    (folder / "sources.list.d").mkdir()
    for name, text in files.items():
        stem, _, kind = name.rpartition("_")
        (folder / "sources.list" if name == "main" else folder / "sources.list.d" / f"{stem}.{kind}").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("deb http://one.test/debian bookworm main contrib", "http://one.test/debian"),
        ("deb [arch=amd64 signed-by=/k.gpg] https://one.test/debian/ trixie main # near", "https://one.test/debian"),
        ("  deb http://one.test/mirror stable main", "http://one.test/mirror"),
        ("# deb http://one.test/debian bookworm main", None),
        ("deb-src http://one.test/debian bookworm main", None),
        ("deb http://one.test/ubuntu jammy main", None),
        ("deb http://one.test/debian-security bookworm-security main", None),
        ("deb http://one.test/debian bookworm contrib", None),
        ("deb cdrom:[Debian]/ bookworm main", None),
        ("deb tor+http://one.test/debian bookworm main", None),
        ("deb http://one.test/other bookworm main\ndeb http://two.test/debian bookworm main", "http://two.test/debian"),
    ],
)
def test_a_line_names_a_mirror_of_debian(tmp_path: Path, line: str, found: str | None) -> None:
    assert debian_mirror(apt(tmp_path, main=line)) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (STANZA, "http://one.test/debian"),
        (STANZA + "Enabled: no\n", None),
        (STANZA.replace("deb deb-src", "deb-src"), None),
        (STANZA.replace("Suites: bookworm ", "Suites: "), None),
        (
            "Types: deb\nURIs: http://x.test/y\nSuites: nodistro\nComponents: main\n\n" + STANZA,
            "http://one.test/debian",
        ),
    ],
)
def test_a_stanza_names_a_mirror_of_debian(tmp_path: Path, text: str, found: str | None) -> None:
    assert debian_mirror(apt(tmp_path, debian_sources=text)) == found


def test_a_list_of_mirrors_is_followed(tmp_path: Path) -> None:
    listed = tmp_path / "mirrors.list"
    listed.write_text("# near\nhttps://three.test/debian\tpriority:1\n")
    line = f"deb mirror+file:{listed} bookworm main"
    assert debian_mirror(apt(tmp_path, main=line)) == "https://three.test/debian"
    listed.unlink()
    assert debian_mirror(tmp_path) is None


def test_no_apt_no_mirror(tmp_path: Path) -> None:
    assert debian_mirror(tmp_path / "none") is None
