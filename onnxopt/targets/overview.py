"""Every target that has a name, and whether it can be run from this machine."""

from __future__ import annotations

from dataclasses import dataclass

from onnxopt.runtime import session
from onnxopt.runtime.target import ALIASES, GROUPS, NATIVE, Target
from onnxopt.targets.find import find_way
from onnxopt.targets.spec import PROVIDERS, Wanted
from onnxopt.targets.way import Unavailable


@dataclass(frozen=True)
class Line:
    """A target. ``how`` it runs from here, or ``why`` it does not and the ``remedy``; what does not apply is empty."""

    name: str
    aliases: tuple[str, ...]
    device: str
    how: str
    why: str
    remedy: str

    @property
    def available(self) -> bool:
        """Whether it can be run from here."""
        return bool(self.how)


def overview() -> tuple[Line, ...]:
    """The processors, then ``native`` with each execution provider that is installed."""
    installed = [name for name, provider in PROVIDERS.items() if provider in session.providers()]
    wanted = [Wanted(target.name, target) for target in GROUPS["all"]]
    wanted += [Wanted(f"{NATIVE.name}+{name}", NATIVE, provider=PROVIDERS[name]) for name in installed]
    return tuple(_line(w) for w in wanted)


def groups() -> dict[str, tuple[str, ...]]:
    """The names that stand for several targets, and for which."""
    return {name: tuple(t.name for t in members) for name, members in GROUPS.items()}


def _line(wanted: Wanted) -> Line:
    way = find_way(wanted)
    aliases = tuple(alias for alias, name in ALIASES.items() if name == wanted.name)
    device = _device(wanted.target)
    if isinstance(way, Unavailable):
        return Line(wanted.name, aliases, device, "", way.why, way.remedy)
    return Line(wanted.name, aliases, device, way.how, "", "")


def _device(target: Target) -> str:
    return "this machine" if target.architecture is None else target.device
