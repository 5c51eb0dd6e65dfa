"""Where the files come from that an environment is made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from onnxopt.environments.apt import SCHEMES, debian_mirror
from onnxopt.environments.debian import KEYRINGS
from onnxopt.environments.lock import Lock, shipped
from onnxopt.errors import SpecError, TargetError


@dataclass(frozen=True, kw_only=True)
class Source:
    """A mirror (None: the one of this system) and pip; or ``offline``, a folder that ``keep`` filled before.

    ``keep``: a folder to leave everything in that was fetched, laid out like a mirror, with ``wheels`` beside.
    """

    mirror: str | None = None
    offline: Path | None = None
    keep: Path | None = None
    lock: Lock = shipped()
    keyrings: tuple[Path, ...] = KEYRINGS

    @property
    def address(self) -> str:
        """Of the mirror, or of the folder as if it were one, without a slash at its end.

        Raises TargetError if there is neither, SpecError for what is no address.
        """
        if self.offline is not None:
            return self.offline.resolve().as_uri()
        address = self.mirror or debian_mirror()
        if address is None:
            raise TargetError("apt knows no Debian mirror here: give the address of one by --mirror, or use --offline")
        try:
            parts = urlsplit(address)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in SCHEMES or not (parts.netloc or parts.path):
            raise SpecError(f"'{address}' is no address of a mirror: it begins with http://, https:// or file://")
        return address.rstrip("/")

    def wheels(self, folder: Path, processor: str) -> Path:
        """Where wheels for a processor (``arm64``, ``here``) lie or are put: ``folder`` is for what is not kept."""
        return (self.offline or self.keep or folder) / "wheels" / processor

    def wheels_from(self, processor: str) -> str:
        """Where pip looks, in words."""
        return "the index that pip uses" if self.offline is None else str(self.wheels(self.offline, processor))
