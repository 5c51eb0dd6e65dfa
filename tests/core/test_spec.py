"""Text, recipes and entry points become passes; what is wrong is said with the nearest right names."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from onnxopt.core import spec
from onnxopt.core.pass_ import Pass, PassResult, option
from onnxopt.errors import SpecError


@dataclass(frozen=True, kw_only=True)
class Sample(Pass):
    """A pass with an option of each type."""

    name: ClassVar[str] = "sample-pass"

    ratio: float = option(0.5, "a share")
    count: int | None = option(None, "how many")
    mode: Literal["one", "two"] = option("one", "which")
    fast_way: bool = option(False, "faster")
    words: str = option("", "names")

    def __post_init__(self) -> None:
        if self.ratio < 0:
            raise ValueError("ratio is below 0")

    def run(self, model, context) -> PassResult:
        return PassResult(0)


@pytest.fixture(autouse=True)
def known(monkeypatch) -> None:
    passes = {"sample-pass": Sample, **spec.known_passes()}
    monkeypatch.setattr(spec, "known_passes", lambda: passes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sample-pass", Sample()),
        ("sample-pass:ratio=0.25:count=3", Sample(ratio=0.25, count=3)),
        ("sample-pass:count=none:mode=two", Sample(mode="two")),
        ("sample-pass:fast-way", Sample(fast_way=True)),
        ("sample-pass:fast_way=false:words=a+b", Sample(words="a+b")),
    ],
)
def test_a_spec_and_back(text: str, expected: Sample) -> None:
    assert spec.parse(text) == [expected]
    assert spec.parse(spec.spell([expected])) == [expected]


def test_several_passes_keep_their_order() -> None:
    assert [p.name for p in spec.parse("quant, sample-pass:ratio=0.1,prune")] == ["quant", "sample-pass", "prune"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("qant", r"there is no pass 'qant'; did you mean 'quant'"),
        ("zzzzzzzz", r"there is no pass 'zzzzzzzz'; there is .*'quant'"),
        ("sample-pass:ratoi=1", r"has no option 'ratoi'; did you mean 'ratio'"),
        ("sample-pass:ratio=x", r"sample-pass:ratio is 'x', which is no number"),
        ("sample-pass:count=1.5", r"sample-pass:count is '1.5', which is no integer"),
        ("sample-pass:mode=oen", r"sample-pass:mode is 'oen'; did you mean 'one'"),
        ("sample-pass:fast-way=7", r"sample-pass:fast-way is '7'; write true or false"),
        ("sample-pass:ratio=-1", r"sample-pass: ratio is below 0"),
        ("sample-pass:ratio=1:ratio=2", r"option 'ratio' of 'sample-pass' is given twice"),
        ("sample-pass:=1", r"has an option without a name"),
        ("sample-pass,,quant", r"names no pass in one place"),
        ("", r"names no pass"),
        (
            "sample-pass:ratio=1,mode=two",
            r"^'mode=two' is an option, not a pass: options follow a colon, as in sample-pass:ratio=1:mode=two$",
        ),
        ("ratio=0.5", r"'ratio=0.5' is an option, not a pass: options follow a colon, as in prune:ratio=0.5"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec.parse(text)


def test_recipes(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('passes = ["sample-pass:ratio=0.1", {name = "sample-pass", count = 2, fast-way = true}]')
    assert spec.read_recipe(path) == [Sample(ratio=0.1), Sample(count=2, fast_way=True)]
    path.write_text('passes = [{name = "sample-pass", count = 4.0}]')
    assert spec.read_recipe(path) == [Sample(count=4)]
    path.write_text('[[passes]]\nname = "sample-pass"\nratio = 1\n')
    assert spec.read_recipe(path) == [Sample(ratio=1.0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("passes = [", "is not TOML"),
        ("pases = []", "unknown key 'pases'"),
        ("passes = []", "lists no passes"),
        ("passes = 3", "lists no passes"),
        ("passes = [3]", "a pass without a name: 3"),
        ('passes = [{name = "sample-pass", count = inf}]', "count is 'inf', which is no integer"),
        ('passes = [{name = "sample-pass", count = 1e400}]', "count is 'inf', which is no integer"),
        ('passes = [{name = "sample-pass", count = 4.7}]', r"count is '4\.7', which is no integer"),
        ('passes = [{name = "sample-pass", ratio = true}]', "ratio is a number, not true or false"),
    ],
)
def test_recipes_that_are_wrong(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(SpecError, match=message):
        spec.read_recipe(tmp_path / "r.toml")


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"cannot read the recipe .*No such file"):
        spec.read_recipe(tmp_path / "r.toml")


def test_options_are_read_off_the_dataclass() -> None:
    assert spec.options(Sample)[:4] == [
        spec.Option("ratio", "number", "0.5", "a share"),
        spec.Option("count", "integer|none", "none", "how many"),
        spec.Option("mode", "one|two", "one", "which"),
        spec.Option("fast-way", "true|false", "false", "faster"),
    ]


def test_every_shipped_pass_is_named_like_its_file_and_explains_its_options() -> None:
    shipped = {n: t for n, t in spec.known_passes().items() if n != "sample-pass"}
    assert set(shipped) >= {"clean", "fold-bn", "fold-constants", "prune", "quant", "svd"}
    for name, pass_type in shipped.items():
        assert pass_type.__module__ == f"onnxopt.passes.{name.replace('-', '_')}"
        assert pass_type.__doc__
        assert all(o.meaning for o in spec.options(pass_type))
        assert spec.parse(name) == [pass_type()]


def test_entry_points_of_other_distributions(monkeypatch) -> None:
    monkeypatch.undo()
    entry = EntryPoint("sample-pass", f"{__name__}:Sample", spec.ENTRY_POINTS)
    monkeypatch.setattr(EntryPoint, "load", lambda self: {"Sample": Sample, "int": int}[self.value.rpartition(":")[2]])
    monkeypatch.setattr(spec.importlib.metadata, "entry_points", lambda group: [entry])
    spec.known_passes.cache_clear()
    try:
        assert spec.known_passes()["sample-pass"] is Sample
        wrong = EntryPoint("bad", "builtins:int", spec.ENTRY_POINTS)
        monkeypatch.setattr(spec.importlib.metadata, "entry_points", lambda group: [wrong])
        spec.known_passes.cache_clear()
        with pytest.raises(SpecError, match=r"entry point 'bad' .* is no pass"):
            spec.known_passes()
    finally:
        spec.known_passes.cache_clear()
