"""A Debian mirror: packages by their SHA-256, or the newest of a suite by its signed index."""

from __future__ import annotations

import lzma
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from onnxopt.environments.fetch import GoneError, fetch
from onnxopt.environments.lock import Package, Part
from onnxopt.errors import TargetError
from onnxopt.progress import Track

# What the packages debian-archive-keyring put there, before and since they were renamed.
KEYRINGS = tuple(Path("/usr/share/keyrings") / f"debian-archive-keyring.{kind}" for kind in ("gpg", "pgp"))
_RELEASE_BYTES = 4 * 2**20
_INDEX_BYTES = 2**28
_INDEX_LINES = 2**25


@dataclass(frozen=True)
class Mirror:
    """``folder``: where the files go, under their paths on the mirror. ``say`` hears what is out of the ordinary."""

    address: str
    folder: Path
    say: Callable[[str], None]
    track: Track
    keyrings: tuple[Path, ...] = KEYRINGS

    def obtain(self, part: Part) -> Part:
        """Fetch the packages; those of the suite today where one is gone since. Returns what was fetched.

        Raises TargetError where a package, or the signature of the suite's index, is not what it should be.
        """
        try:
            self._fetch(part)
        except GoneError:
            today = self._today(part)
            if today == part:
                raise
            changed = ", ".join(p.title for p in today.packages if p not in part.packages)
            self.say(f"the mirror has newer packages of {part.suite}, its signature is good: {changed}")
            self._fetch(today)
            return today
        return part

    def path(self, package: Package) -> Path:
        """Where a package lies once it is fetched. Raises TargetError for a path that leads elsewhere."""
        path = self.folder / package.file
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise TargetError(f"the package {package.name} has the path '{package.file}', which no mirror has")
        return path

    def _fetch(self, part: Part) -> None:
        for p in part.packages:
            address = f"{self.address}/{quote(p.file, safe='/+~:')}"
            fetch(address, self.path(p), self.track, size=p.size, sha256=p.sha256)

    def _today(self, part: Part) -> Part:
        """The same packages as the suite has them today."""
        name = f"main/binary-{part.architecture}/Packages.xz"
        sums = _sums(self._release(part.suite), part.suite)
        if name not in sums:
            raise TargetError(f"{self.address} has no {name} for {part.suite}: try another --mirror")
        sha256, size = sums[name]
        index = self.folder / "dists" / part.suite / name
        if size > _INDEX_BYTES:
            raise TargetError(f"the index of {part.suite} on {self.address} is too large: try another --mirror")
        fetch(f"{self.address}/dists/{part.suite}/{name}", index, self.track, size=size, sha256=sha256)
        wanted = [p.name for p in part.packages]
        found = {name: _package(fields) for fields in _paragraphs(index) if (name := fields["Package"]) in wanted}
        if missing := [name for name in wanted if name not in found]:
            raise TargetError(
                f"{part.suite} on {self.address} has no {missing[0]}: a newer onnxopt may know another way"
            )
        return Part(part.suite, part.architecture, tuple(found[name] for name in wanted))

    def _release(self, suite: str) -> str:
        """What Debian says of a suite, after its signature was checked."""
        program, keyring = shutil.which("gpgv"), next((k for k in self.keyrings if k.is_file()), None)
        if program is None or keyring is None:
            raise TargetError(
                f"{self.address} no longer has the packages of {suite} that onnxopt knows, and newer ones cannot be "
                "trusted without gpgv and debian-archive-keyring: install these two, or use a newer onnxopt"
            )
        path = self.folder / "dists" / suite / "InRelease"
        try:
            fetch(f"{self.address}/dists/{suite}/InRelease", path, self.track, size=_RELEASE_BYTES, sha256=None)
        except GoneError:
            raise TargetError(
                f"{self.address} has neither the packages that are wanted nor an index of Debian {suite}: "
                "give the address of a Debian mirror by --mirror"
            ) from None
        command = [program, "--quiet", "--keyring", str(keyring), "--output", "-", str(path)]
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise TargetError(f"the signature of {suite} on {self.address} is not Debian's: try another --mirror")
        return done.stdout.decode("utf-8", "replace")  # only what is signed, not what stands around it


def _sums(release: str, suite: str) -> dict[str, tuple[str, int]]:
    """SHA-256 and size of every index of a suite. Raises TargetError for the word about another suite."""
    if suite not in [line.removeprefix("Codename:").strip() for line in release.splitlines() if "Codename:" in line]:
        raise TargetError(f"what the mirror gives for {suite} is another suite: try another --mirror")
    lines = iter(release.partition("\nSHA256:\n")[2].splitlines())
    rows = [line.split() for line in iter(lambda: next(lines, ""), "") if line.startswith(" ")]
    return {row[2]: (row[0], int(row[1])) for row in rows if len(row) == 3 and row[1].isdecimal()}


def _paragraphs(index: Path) -> Iterator[Mapping[str, str]]:
    """The packages of an index. Raises TargetError for a damaged one."""
    fields: dict[str, str] = {}
    try:
        with lzma.open(index, "rt", encoding="utf-8", errors="replace") as lines:
            for _, line in zip(range(_INDEX_LINES), lines, strict=False):
                name, colon, value = line.partition(": ")
                if colon and not name[0].isspace():
                    fields[name] = value.strip()
                elif not line.strip() and "Package" in fields:
                    yield fields
                    fields = {}
    except (lzma.LZMAError, EOFError) as error:
        raise TargetError(f"the index {index.name} is damaged: {error}") from error
    if "Package" in fields:
        yield fields


def _package(fields: Mapping[str, str]) -> Package:
    try:
        name, version, file = fields["Package"], fields["Version"], fields["Filename"]
        return Package(name, version, file, int(fields["Size"]), fields["SHA256"])
    except (KeyError, ValueError) as error:
        raise TargetError(f"the index tells no {error} of {fields['Package']}: try another --mirror") from error
