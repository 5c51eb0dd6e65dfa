"""The command in a report is the one that was given."""

import shlex
from pathlib import Path

from click.testing import CliRunner

from onnxopt.check.gates import Gates
from onnxopt.cli.main import commands
from onnxopt.job import DataOptions, RunOptions
from onnxopt.report.json import read_json
from onnxopt.reproduce import command
from onnxopt.runtime.target import find_target


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


def test_names_that_a_shell_or_the_options_would_take() -> None:
    assert command("validate", "-o", "$(b).onnx", samples=4) == "onnxopt validate --samples 4 -- -o '$(b).onnx'"


def test_it_runs_again(tmp_path: Path) -> None:
    model = Path(__file__).parents[1] / "sample_models" / "digits_mlp.onnx"
    first = [str(model), "--passes", "fold-bn,clean", "--seed", "1", "--samples", "8", "-o", str(tmp_path / "o.onnx")]
    first += ["--force", "--report", str(tmp_path / "a.json")]
    assert CliRunner().invoke(commands, ["optimize", *first]).exit_code == 0
    (line,) = read_json(tmp_path / "a.json").reproduce
    program, *words = shlex.split(line)
    assert program == "onnxopt"
    again = CliRunner().invoke(commands, [*words, "--report", str(tmp_path / "b.json")])
    assert again.exit_code == 0, again.output
    assert read_json(tmp_path / "b.json").reproduce == (line,)
