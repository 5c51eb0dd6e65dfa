from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from onnxopt.cli.main import commands
from onnxopt.environments import arm64, setup
from onnxopt.errors import SpecError, TargetError

# Longer than a terminal is wide.
LONG = " and a long name" * 10
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"a [bold] cache{LONG}"))
    monkeypatch.setattr(arm64, "_ON_PATH", ("no-such-emulator",))

    def work(*arguments: str) -> Result:
        return CliRunner().invoke(commands, ["targets", "setup", *arguments])

    return work


def test_a_dry_run_says_all_and_does_nothing(run: Run, tmp_path: Path) -> None:
    result = run("arm64", "--dry-run", "--mirror", "http://127.0.0.1:9/debian")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[:2] == [
        f"into {tmp_path}/a [bold] cache{LONG}/onnxopt/targets/arm64, about 160 MB:",
        "from http://127.0.0.1:9/debian: 7.6 MB for a system with Python, 71.1 MB for QEMU",
    ]
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_a_runtime(run: Run) -> None:
    result = run("ort-1.16", "--dry-run")
    assert "onnxruntime==1.16.* and numpy<2" in result.stdout


def test_what_is_set_up_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arm64, "current", lambda: "ONNX Runtime 9 in [red] place")
    for arguments in (["arm64"], ["arm64", "--dry-run"]):
        assert run(*arguments).stdout == "it is set up already: ONNX Runtime 9 in [red] place\n"
    assert run("arm64", "--quiet").stdout == ""


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (["arm46"], SpecError, "'arm46' is nothing to set up.*arm64"),
        (["ort-new"], SpecError, "'new' is no version of ONNX Runtime"),
        (["arm64", "--offline", "no-such-folder"], SpecError, "no-such-folder is no folder: fill one by --keep"),
        (
            ["arm64", "--offline", ".", "--keep", "x"],
            SpecError,
            "--offline opens no connection: leave --keep and --mirror",
        ),
        (["arm64", "--offline", ".", "--mirror", "x"], SpecError, "--offline opens no connection"),
        (["arm64", "--mirror", "gopher://x"], SpecError, "'gopher://x' is no address of a mirror"),
        (["arm64", "--mirror", "http://[x"], SpecError, r"'http://\[x' is no address of a mirror"),
    ],
)
def test_wrong_usage(run: Run, arguments: Sequence[str], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        raise run(*arguments).exception or AssertionError("it did not fail")


def test_a_set_up_that_fails_is_a_target_that_is_not_available(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    result = run("arm64", "--offline", str(tmp_path / "empty"))
    assert isinstance(result.exception, TargetError)
    assert result.exception.exit_code == 4
    assert f"from {tmp_path}/empty/wheels/arm64: ONNX Runtime" in result.stdout


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert setup._version("arm64") is None
    assert setup._version("ort-1.16") == "1.16"
