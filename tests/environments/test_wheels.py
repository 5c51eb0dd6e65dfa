import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from onnxopt.environments import wheels
from onnxopt.errors import TargetError

TAG = "py3-none-any"


def test_from_an_index_to_a_folder_to_packages(tmp_path: Path, make_wheel: Callable[..., Path]) -> None:
    for version in ("1.9", "2.1"):
        make_wheel("numpy", version, TAG, "import needs_not_be_there")
    wheels.download(["numpy<2"], tmp_path / "kept")
    wheels.install(["numpy<2"], tmp_path / "kept", tmp_path / "site")
    assert wheels.installed(tmp_path / "site") == {"numpy": "1.9"}
    assert len(wheels.sums(tmp_path / "kept", {"numpy": "1.9"})["numpy"]) == 64
    assert wheels.sums(tmp_path / "kept", {"numpy": "2.1"}) == {}


def test_a_folder_named_pip_is_not_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip/__main__.py").write_text("print('ran')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TargetError, match="pip finds no numpy: is there a connection, or a wheel in that folder"):
        wheels.install(["numpy"], tmp_path, tmp_path / "site")


def test_trimmed_is_what_is_never_read(tmp_path: Path) -> None:
    kept = ("numpy/__init__.py", "numpy/testing/__init__.py", "onnxruntime/capi/a.so", "numpy-1.dist-info/METADATA")
    cut = ("numpy/f2py/a.py", "numpy/_core/tests/b.py", "numpy/a.pyi", "numpy/lib/a.a", "onnxruntime/tools/x", "bin/x")
    for name in (*kept, *cut):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    wheels.trim(tmp_path)
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == set(kept)


def test_no_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(wheels, "find_spec", lambda _: None)
    with pytest.raises(TargetError, match=f"{sys.executable} has no pip .*: run '.* -m ensurepip'"):
        wheels.download(["numpy"], tmp_path)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "WARNING: x\nERROR: No version that satisfies the requirement a==9 (from versions: 1.0, 2.0rc1, 3)",
            "pip finds no a==9 for this platform: there are 1.0 to 3",
        ),
        ("ERROR: satisfies the requirement a (from versions: none)", "pip finds no a: is there a connection"),
        (
            "WARNING: slow\nERROR: [Errno 28] No space left on device\nERROR: more",
            "pip failed: [Errno 28] No space left",
        ),
        ("Traceback", "pip failed: exit code 2; use --offline"),
    ],
)
def test_what_pip_complains_of_in_one_line(said: str, told: str) -> None:
    reason = wheels._reason(said, 2)
    assert reason.startswith(told)
    assert "\n" not in reason
