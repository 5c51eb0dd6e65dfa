import json
from collections.abc import Callable
from pathlib import Path

import pytest

from onnxopt.environments import runtimes
from onnxopt.environments.source import Source
from onnxopt.errors import ExecutionError, SpecError, TargetError
from onnxopt.progress import silent
from onnxopt.runtime import session
from onnxopt.runtime.exchange import Job
from onnxopt.targets.runtimes import OtherRuntime, find_runtime, parse_version
from onnxopt.targets.way import Unavailable

TAG = "py3-none-any"
RUNTIME = "def get_available_providers(): return ['CPUExecutionProvider']"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "onnxopt/targets"


@pytest.fixture
def index(make_wheel: Callable[..., Path]) -> None:
    for version in ("1.15.0", "1.16.0", "1.16.3", "1.20.1"):
        make_wheel("onnxruntime", version, TAG, RUNTIME)
    for version in ("1.26.4", "2.4.0"):
        make_wheel("numpy", version, TAG)


def found(version: str) -> OtherRuntime:
    way = find_runtime(version)
    assert isinstance(way, OtherRuntime)
    return way


def test_the_newest_of_a_version_runs_apart_from_ours(index: None, cache: Path) -> None:
    said: list[str] = []
    assert (
        runtimes.set_up("1.16", Source(), said.append, silent) == f"set up: ONNX Runtime 1.16.3 in {cache}/ort-1.16.3"
    )
    assert said == [
        f"into {cache}, about 80 MB:",
        "from the index that pip uses: onnxruntime==1.16.* and numpy<2, about 30 MB",
    ]
    made = json.loads((cache / "ort-1.16.3/environment.json").read_text())
    assert (made["onnxruntime"], made["numpy"]) == ("1.16.3", "1.26.4")
    assert sorted(p["name"] for p in made["packages"]) == ["numpy", "onnxruntime"]
    assert sorted(p.name for p in cache.iterdir()) == [".lock", "ort-1.16.3"]
    assert sorted(p.name for p in (cache / "ort-1.16.3").iterdir()) == ["environment.json", "site"]
    for wanted in ("1.16", "1.16.3"):
        way = found(wanted)
        answer = way.run(Job(models=(), feeds=()))
        assert (answer.onnxruntime, answer.numpy) == ("1.16.3", "1.26.4") != (session.__version__, "")
        assert (way.how, way.timed) == ("natively, by ONNX Runtime 1.16.3", True)
    again = runtimes.set_up("1.16", Source(), said.append, silent)
    assert again == f"it is set up already: ONNX Runtime 1.16.3 in {cache}/ort-1.16.3"


@pytest.mark.parametrize(
    ("wanted", "numpy"), [("1.16", "numpy<2"), ("1.18.1", "numpy<2"), ("1.19", "numpy"), ("2.0", "numpy")]
)
def test_the_numpy_that_fits(wanted: str, numpy: str) -> None:
    assert runtimes.requirements(wanted)[1] == numpy


def test_a_version_that_is_not_there(index: None, cache: Path) -> None:
    with pytest.raises(
        TargetError, match=r"no onnxruntime==1\.9\.\* for this platform: there are 1\.15\.0 to 1\.20\.1"
    ):
        runtimes.set_up("1.9", Source(), print, silent)
    assert [p.name for p in cache.iterdir()] == [".lock"]


def test_a_version_that_does_not_work(make_wheel: Callable[..., Path], cache: Path) -> None:
    make_wheel("onnxruntime", "1.17.0", TAG, "raise ImportError('no such processor')")
    make_wheel("numpy", "1.26.4", TAG)
    with pytest.raises(TargetError, match=r"ONNX Runtime 1\.17\.0 does not work here: .*no such processor"):
        runtimes.set_up("1.17", Source(), print, silent)
    assert [p.name for p in cache.iterdir()] == [".lock"]


@pytest.mark.parametrize("text", ["", "1", "1.", "x", "1.16.3.4", "1.16/..", "1.16 ", "99999.1", "1.16rc1"])
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(SpecError, match="is no version of ONNX Runtime: write one such as"):
        parse_version(text)


def write(folder: Path, **said: str) -> None:
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text(json.dumps(said))


def test_which_folder_is_meant(cache: Path) -> None:
    from onnxopt.targets.runtimes import python_version

    for version in ("1.2.9", "1.20.2", "1.20.10", "1.1.0"):
        write(cache / f"ort-{version}", onnxruntime=version, python=python_version())
    assert found("1.20").version == "1.20.10"
    assert found("1.20.2").version == "1.20.2"
    assert found("1.2").version == "1.2.9"
    assert found("1.1").version == "1.1.0"


def test_why_one_cannot_be_run(cache: Path) -> None:
    remedy = "run 'onnxopt targets setup ort-1.16'"
    assert find_runtime("1.16") == Unavailable("ONNX Runtime 1.16 is not set up on this machine", remedy)
    write(cache / "ort-1.16.1", onnxruntime="1.16.1", python="3.4")
    way = find_runtime("1.16")
    assert isinstance(way, Unavailable)
    assert way.why.startswith("ONNX Runtime 1.16.1 is set up for Python 3.4, and this is 3.")
    (cache / "ort-1.16.1/environment.json").write_text("{")
    assert find_runtime("1.16") == Unavailable("ONNX Runtime 1.16 is not set up on this machine", remedy)


def test_another_version_than_meant_is_refused(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    for name, version in (("numpy", "1.0"), ("onnxruntime", "1.16.2")):
        (tmp_path / f"site/{name}.py").write_text(f"__version__ = '{version}'\n{RUNTIME}")
    with pytest.raises(ExecutionError, match=r"ONNX Runtime 1\.16\.2 ran where 1\.16\.3 was meant to"):
        OtherRuntime("1.16.3", tmp_path).run(Job(models=(), feeds=()))
