"""Imports point one way, and only one room knows ONNX Runtime."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each room may import itself and these; errors, progress and spelling are open to all.
MAY_IMPORT = {
    "numerics": set(),
    "graph": set(),
    "data": {"graph", "numerics"},
    "runtime": {"graph", "numerics"},
    "targets": {"runtime", "graph", "numerics"},
    "environments": {"targets", "runtime", "graph", "numerics"},
    "report": {"graph", "numerics", "runtime"},
    "core": {"report", "data", "runtime", "graph", "numerics"},
    "quantization": {"core", "data", "runtime", "graph", "numerics"},
    "pruning": {"core", "data", "runtime", "graph", "numerics"},
    "weights": {"quantization", "core", "data", "runtime", "graph", "numerics"},
    "factoring": {"pruning", "core", "data", "runtime", "graph", "numerics"},
    "check": {"quantization", "pruning", "targets", "core", "report", "data", "runtime", "graph", "numerics"},
    "deploy": {
        *("check", "quantization", "targets", "environments", "report", "core", "data", "runtime", "graph", "numerics"),
    },
    "passes": {"quantization", "weights", "pruning", "factoring", "core", "data", "runtime", "graph", "numerics"},
    "cli": {
        *(
            "job",
            "deploy",
            "check",
            "environments",
            "targets",
            "quantization",
            "core",
            "report",
            "data",
            "runtime",
            "graph",
            "numerics",
        ),
        "",
    },
}
OPEN_TO_ALL = {"errors", "progress", "spelling"}


def modules() -> list[tuple[str, Path]]:
    rooms = [(room, ROOT / ("passes" if room == "passes" else f"onnxopt/{room}")) for room in MAY_IMPORT]
    return [(room, path) for room, folder in rooms for path in sorted(folder.glob("*.py"))]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize(("room", "path"), modules(), ids=lambda v: v.name if isinstance(v, Path) else v)
def test_imports_point_one_way(room: str, path: Path) -> None:
    used = {parts[1] for name in imports(path) if (parts := name.split("."))[0] == "onnxopt" and len(parts) > 1}
    rooms = {u if u in MAY_IMPORT or u in OPEN_TO_ALL or u == "job" else "" for u in used}
    assert rooms <= {room} | OPEN_TO_ALL | MAY_IMPORT[room]


@pytest.mark.parametrize(("room", "path"), modules(), ids=lambda v: v.name if isinstance(v, Path) else v)
def test_only_the_runtime_imports_onnx_runtime(room: str, path: Path) -> None:
    uses = any(name.split(".")[0] == "onnxruntime" for name in imports(path))
    assert not uses or room == "runtime"


def test_every_room_is_packaged() -> None:
    import tomllib

    packaged = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {f"onnxopt.{p.parent.name}" for p in (ROOT / "onnxopt").glob("*/__init__.py")}
    assert packaged == folders | {"onnxopt"}
