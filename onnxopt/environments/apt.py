"""Which Debian mirror this system uses, from the files that apt reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

APT = Path("/etc/apt")
SCHEMES = ("http", "https", "file")
# What Debian itself calls a suite; others add something: bookworm-pgdg, jammy.
_SUITES = {"bullseye", "bookworm", "trixie", "forky", "duke", "oldoldstable", "oldstable", "stable", "testing", "sid"}
_LINE = re.compile(r"deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.+)")
# Cloud images name a file that names the mirrors.
_LIST = "mirror+file:"


@dataclass(frozen=True)
class Entry:
    """A source of packages, with what it offers."""

    address: str
    suites: frozenset[str]
    components: frozenset[str]


def debian_mirror(apt: Path = APT) -> str | None:
    """Address of the first Debian mirror that apt uses here, without a slash at its end; None if there is none."""
    fitting = [e for e in _entries(apt) if e.suites & _SUITES and "main" in e.components]
    addresses = [a.rstrip("/") for a in map(_address, fitting) if urlsplit(a).scheme in SCHEMES]
    # Others publish for Debian's suites too; a mirror of Debian itself is called so.
    return next((a for a in addresses if a.rsplit("/", 1)[-1] == "debian"), next(iter(addresses), None))


def _entries(apt: Path) -> Iterator[Entry]:
    parts = apt / "sources.list.d"
    for path in (apt / "sources.list", *sorted(parts.glob("*.list")), *sorted(parts.glob("*.sources"))):
        with suppress(OSError):  # absent, or not ours to read
            text = path.read_text(encoding="utf-8", errors="replace")
            yield from _stanzas(text) if path.suffix == ".sources" else _lines(text)


def _lines(text: str) -> Iterator[Entry]:
    """The older form: ``deb [options] address suite components``."""
    for line in text.splitlines():
        if match := _LINE.fullmatch(line.partition("#")[0].strip()):
            yield Entry(match[1], frozenset([match[2]]), frozenset(match[3].split()))


def _stanzas(text: str) -> Iterator[Entry]:
    """The newer form: paragraphs of fields, whose values may go on in indented lines."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", lines):
        fields = {
            k.lower(): v.split() for k, v in re.findall(r"^([\w-]+):((?:.*)(?:\n[ \t].*)*)", stanza, re.MULTILINE)
        }
        if "deb" in fields.get("types", ()) and fields.get("enabled", ["yes"])[:1] not in (["no"], ["false"], ["0"]):
            for address in fields.get("uris", ()):
                yield Entry(address, frozenset(fields.get("suites", ())), frozenset(fields.get("components", ())))


def _address(entry: Entry) -> str:
    """Where an entry leads, the first of a list where it names one."""
    if not entry.address.startswith(_LIST):
        return entry.address
    with suppress(OSError):
        listed = Path(entry.address.removeprefix(_LIST)).read_text(encoding="utf-8", errors="replace")
        return next((line.split()[0] for line in listed.splitlines() if line.startswith(("http:", "https:"))), "")
    return ""
