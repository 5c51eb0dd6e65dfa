"""What the documents say is true."""

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import onnx

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.model import Model

ROOT = Path(__file__).parents[1]


def test_the_pass_of_the_contributing_guide_works(tmp_path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    (tmp_path / "drop_relu.py").write_text(code)
    spec = spec_from_file_location("drop_relu", tmp_path / "drop_relu.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["drop_relu"] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        model = Model.from_proto(
            onnx.parser.parse_model(
                '<ir_version: 8, opset_import: ["" : 17]> '
                "g (float[2] x) => (float[2] y) { a = Relu(x) b = Relu(a) c = Abs(b) d = Relu(c) y = Relu(d) }"
            )
        )
        result = module.DropRelu().run(model, Context(model.clone(), open_dataset(None, model.inputs)))
    finally:
        del sys.modules["drop_relu"]
    assert result.changed == 1
    assert [n.op for n in model.graph.nodes] == ["Relu", "Abs", "Relu", "Relu"]
    assert [s.why for s in result.skips] == ["its output is an output of the graph, whose name must stay"]


def test_commands_of_the_readme_exist() -> None:
    from onnxopt.cli.main import commands

    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    used = {
        name for page in pages for name in re.findall(r"(?:[/`$] ?|^)onnxopt ([a-z]+)", page.read_text(), re.MULTILINE)
    }
    assert used == set(commands.commands)


def test_passes_of_the_documents_exist() -> None:
    from onnxopt.core.spec import known_passes, parse

    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    specs = {s for page in pages for s in re.findall(r"--passes ([a-z][a-z0-9:=.,%-]*)", page.read_text())}
    assert {p.name for spec in specs for p in parse(spec)} >= {"quant", "prune"}
    assert all(f"`{name}`" in (ROOT / "README.md").read_text() for name in known_passes())


def test_the_table_of_rooms_matches_the_tree() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"^\| `onnxopt/([a-z]+)`", text, re.MULTILINE))
    assert named == {p.parent.name for p in (ROOT / "onnxopt").glob("*/__init__.py")} - {"passes"}


def test_relative_links_resolve() -> None:
    folders = ("benchmarks", "docs", "onnxopt", "passes", "sample_models", "tests")
    pages = [*ROOT.glob("*.md"), *(page for folder in folders for page in (ROOT / folder).rglob("*.md"))]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", page.read_text())]
    broken = [(str(p.relative_to(ROOT)), x) for p, x in links if "://" not in x and not (p.parent / x).exists()]
    assert links
    assert broken == []
