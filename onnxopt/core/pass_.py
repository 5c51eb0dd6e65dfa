"""What a pass is: options, a promise, and one method."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from onnxopt.core.context import Context
    from onnxopt.graph.ir import Node
    from onnxopt.graph.model import Model

Figure = int | float | str | bool | None | list[Any] | dict[str, Any]


@dataclass(frozen=True)
class Skip:
    """A place that looked right and was left alone: the node's name, and why."""

    node: str
    why: str


@dataclass(frozen=True)
class PassResult:
    """What happened: how many places changed, what was skipped, and figures worth reporting (JSON values by name)."""

    changed: int
    skips: tuple[Skip, ...] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class Preflight:
    """What a pass would do, as far as it can be told without long work: how many places would change, which would be
    left alone as (code, node, why), whose codes stay when the sentences change, figures, and, if nothing would be
    gained, why."""

    changed: int
    skips: tuple[tuple[str, str, str], ...] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    refusal: str = ""


def option(default: Any, meaning: str) -> Any:
    """A pass's option: a dataclass field with its default and one line that says what it means."""
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True, kw_only=True)
class Pass(ABC):
    """A step that changes a model. The fields of the dataclass are its options, made with ``option``.

    ``name`` is its name on the command line; ``exact`` promises the same results up to float rounding; ``after``
    names passes that must come earlier if they are in the run at all; ``prepare`` names exact passes that must have
    run before: the manager puts them in where the user did not. Checks of values go into ``__post_init__`` and raise
    ValueError.
    """

    name: ClassVar[str]
    exact: ClassVar[bool] = False
    after: ClassVar[tuple[str, ...]] = ()
    prepare: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def run(self, model: Model, context: Context) -> PassResult:
        """Change the model in place. Only unexpected states raise; a place that cannot be changed is a Skip."""

    def needs(self) -> tuple[str, ...]:
        """What must have run before, with these options: ``prepare``, where they change nothing about it."""
        return self.prepare

    def preflight(self, model: Model, context: Context) -> Preflight | None:
        """What ``run`` would do, without long work and without changing the model; None if that cannot be told."""
        return None

    def __str__(self) -> str:
        """The pass as a spec: its name and the options that differ from their defaults."""
        parts = [
            f"{f.name.replace('_', '-')}={_text(getattr(self, f.name))}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        ]
        return ":".join([self.name, *parts])


def label(node: Node) -> str:
    """What to call a node in a report: its name, or the name of what it makes."""
    return str(node.name or next((t.name for t in node.outputs if t.name), node.op))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
