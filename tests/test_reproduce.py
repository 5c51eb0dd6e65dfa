"""The command in a report is the one that was given."""

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from onnxopt.check.gates import Gates
from onnxopt.check.limits import parse_share
from onnxopt.cli.main import commands
from onnxopt.job import DataOptions, RunOptions
from onnxopt.report.json import read_json
from onnxopt.reproduce import command
from onnxopt.runtime.target import find_target


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little time for the clock: how fast things are is not what these tests are about."""
    monkeypatch.setattr("onnxopt.check.validate._ROUND_S", 0.1)
    monkeypatch.setattr("onnxopt.check.clock._ROUND_S", 0.1)


def test_only_what_was_said() -> None:
    assert command("validate", "a.onnx", "b.onnx", data=DataOptions(), gates=Gates(), run=RunOptions()) == (
        "onnxopt validate a.onnx b.onnx"
    )
    line = command(
        "optimize",
        Path("my model.onnx"),
        passes="prune:ratio=0.3,quant",
        output=Path("b.onnx"),
        other=None,
        data=DataOptions(data="c.npz", seed=3, dims=(("N", 2), ("len gth", 5)), held_out=0.5),
        gates=Gates(min_sqnr=30.5, max_size=1000),
        run=RunOptions(
            validate=False, force=True, target=find_target("x86-64-avx2"), external_root=Path("w"), keep_order=True
        ),
    )
    assert line == (
        "onnxopt optimize 'my model.onnx' --passes prune:ratio=0.3,quant --output b.onnx --data c.npz --seed 3 "
        "--dim N=2 --dim 'len gth=5' --min-sqnr 30.5 --max-size 1000 --keep-order --no-validate --force "
        "--target x86-64-avx2 --allow-external-root w"
    )


@pytest.mark.parametrize(
    ("share", "said"), [(0.01, "0.01"), (1.0, "100%"), (0.0, "0"), (1e-5, "0.00001"), (1 / 3, "0.3333333333333333")]
)
def test_shares_are_read_again(share: float, said: str) -> None:
    assert command("validate", gates=Gates(max_drop=share)) == f"onnxopt validate --max-drop {said}"
    assert parse_share(said) == share


def test_names_that_a_shell_or_the_options_would_take() -> None:
    assert command("validate", "-o", "$(b).onnx", samples=4) == "onnxopt validate --samples 4 -- -o '$(b).onnx'"


def again(first: list[str], folder: Path) -> str:
    """The line in the report of a command, which leads to itself when it is run."""
    found = [CliRunner().invoke(commands, [*first, "--report", str(folder / "a.json")])]
    (line,) = read_json(folder / "a.json").reproduce
    program, *words = shlex.split(line)
    assert program == "onnxopt"
    found.append(CliRunner().invoke(commands, [*words, "--report", str(folder / "b.json")]))
    assert [r.exit_code for r in found] == [0, 0], [r.output for r in found]
    assert read_json(folder / "b.json").reproduce == (line,)
    return line


def test_it_runs_again(tmp_path: Path) -> None:
    model = Path(__file__).parents[1] / "sample_models" / "digits_mlp.onnx"
    first = ["optimize", str(model), "--passes", "fold-bn,clean", "--seed", "1", "--samples", "8"]
    again([*first, "-o", str(tmp_path / "o.onnx"), "--force"], tmp_path)


def test_targets_are_named_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no ssh: the device is not checked
    model = str(Path(__file__).parents[1] / "sample_models" / "digits_mlp.onnx")
    device = "ssh://pi@kitchen:22?python=/opt/v%2C1/bin/python&threads=4"
    first = ["validate", model, model, "--samples", "8", "--min-agreement", "100%", "--target", f"native,{device}"]
    line = again([*first, "--require-target", "native"], tmp_path)
    assert line == (
        f"onnxopt validate {model} {model} --samples 8 --min-agreement 100% "
        f"--target 'native,{device}' --require-target native"
    )
