"""Policies: every key, every wrong one, and that the documents name them all."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.deploy.keys import spelled
from onnxopt.deploy.policy import NAMES, Policy, read_policy
from onnxopt.deploy.run import CHECKS
from onnxopt.errors import SpecError

ROOT = Path(__file__).parents[2]

FULL = """
[checks]
skip = ["targets"]
not-run = "fail"
[opset]
ort = "1.16"
[operators]
providers = ["cpu", "xnnpack"]
forbid = ["Loop"]
[size]
max = "1.5MB"
[memory]
max = 64000000
[latency]
max-ms = 20
threads = 2
target = "ssh://pi@kitchen"
[accuracy]
data = "test.npz"
preprocess = "pixels.toml"
samples = 100
reference = "../float.onnx"
min-agreement = "97%"
max-drop = 0.01
min-accuracy = "90%"
min-sqnr = 15.5
[targets]
run = "x86,arm64"
require = "native"
[saturation]
target = "x86-64-avx2"
[edges]
batches = [1, 2, 1]
largest = 32
[determinism]
threads = [1, 4]
repeats = 2
[audit]
min-integer-share = 0.9
rules = "arm"
[provenance]
required = true
accepted = "report.json"
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "edge.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_every_key(tmp_path: Path) -> None:
    policy = read_policy(write(tmp_path, FULL))
    assert (policy.checks.skip, policy.checks.not_run) == (("targets",), "fail")
    assert not policy.wanted("targets")
    assert policy.wanted("size")
    assert policy.opset.ort == "1.16"
    assert (policy.operators.providers, policy.operators.forbid) == (("cpu", "xnnpack"), ("Loop",))
    assert (policy.size.max, policy.memory.max) == (1_500_000, 64_000_000)
    assert (policy.latency.max_ms, policy.latency.threads, policy.latency.target) == (20.0, 2, "ssh://pi@kitchen")
    assert policy.accuracy.data == str(tmp_path / "test.npz")
    assert policy.accuracy.preprocess == str(tmp_path / "pixels.toml")
    assert policy.accuracy.reference == tmp_path / "../float.onnx"
    assert (policy.accuracy.min_agreement, policy.accuracy.max_drop) == (0.97, pytest.approx(0.01))
    assert (policy.accuracy.min_accuracy, policy.accuracy.min_sqnr, policy.accuracy.samples) == (0.9, 15.5, 100)
    assert (policy.targets.run, policy.targets.require) == ("x86,arm64", "native")
    assert policy.saturation.target == "x86-64-avx2"
    assert (policy.edges.batches, policy.edges.largest) == ((1, 2), 32)
    assert (policy.determinism.threads, policy.determinism.repeats) == ((1, 4), 2)
    assert (policy.audit.min_integer_share, policy.audit.rules) == (pytest.approx(0.9), "arm")
    assert (policy.provenance.required, policy.provenance.accepted) == (True, tmp_path / "report.json")


def test_this_file_leaves_no_key_out() -> None:
    wanted = {(table.name, spelled(k)) for table in fields(Policy) for k in fields(getattr(Policy(), table.name))}
    import tomllib

    assert {(t, k) for t, keys in tomllib.loads(FULL).items() for k in keys} == wanted - {("checks", "only")}


def test_the_document_names_every_key_and_check() -> None:
    text = (ROOT / "docs/check.md").read_text()
    for table in fields(Policy):
        assert f"`[{table.name}]`" in text
        assert all(f"`{spelled(k)}`" in text for k in fields(getattr(Policy(), table.name)))
    assert all(f"| `{name}` |" in text for name in NAMES)
    assert tuple(c.name for c in CHECKS) == NAMES


def test_the_policy_of_the_document_is_one(tmp_path: Path) -> None:
    (text,) = (ROOT / "docs/check.md").read_text().split("```toml\n")[1:]
    policy = read_policy(write(tmp_path, text.split("```")[0]))
    assert (policy.size.max, policy.accuracy.min_agreement) == (1_500_000, 0.97)


def test_only_some() -> None:
    policy = Policy().with_tables({"checks": {"only": ["size", "opset"], "skip": ["opset"]}}, Path())
    assert [name for name in NAMES if policy.wanted(name)] == ["size"]


def test_tables_over_others_keep_the_rest() -> None:
    policy = Policy().with_tables({"latency": {"threads": 4}}, Path()).with_tables({"latency": {"max-ms": 3}}, Path())
    assert (policy.latency.threads, policy.latency.max_ms) == (4, 3.0)


def test_data_is_never_code(tmp_path: Path) -> None:
    assert read_policy(write(tmp_path, '[accuracy]\ndata = "synthetic"')).accuracy.data == "synthetic"
    named = read_policy(write(tmp_path, '[accuracy]\ndata = "os:listdir"')).accuracy.data
    assert named == str(tmp_path / "os:listdir")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[sise]", r"there is no table \[sise\]; did you mean 'size'\?"),
        ("[size]\nmx = 3", r"\[size\] has no key 'mx'; did you mean 'max'\?"),
        ("[size]\nmax_ms = 3", r"\[size\] has no key 'max_ms'"),
        ("size = 3", r"'size' is a table: write \[size\]"),
        ("[[size]]\nmax = 3", "'size' is a table"),
        ('[size]\nmax = "big"', r"\[size\] max: 'big' is no size"),
        ("[size]\nmax = true", r"\[size\] max: True is no size"),
        ("[size]\nmax = -3", r"\[size\] max: '-3' is no size"),
        ("[size]\nmax = [1]", r"\[size\] max: \[1\] is no size"),
        ("[latency]\nmax-ms = -1", r"-1 is no number of 0 or more"),
        ("[latency]\nmax-ms = nan", "nan is no number of 0 or more"),
        ('[latency]\nmax-ms = "5"', "'5' is no number of 0 or more"),
        ("[latency]\nthreads = 0", "0 is no whole number from 1 to 256"),
        ("[latency]\nthreads = 1.5", "1.5 is no whole number"),
        ("[latency]\nthreads = true", "True is no whole number"),
        ("[determinism]\nthreads = []", r"\[\] is no list of whole numbers"),
        ("[determinism]\nthreads = 2", "2 is no list of whole numbers"),
        ("[determinism]\nthreads = [0]", "0 is no whole number from 1 to 256"),
        ("[accuracy]\nmin-agreement = 97", "may mean"),
        ('[accuracy]\nmin-agreement = "lots"', "'lots' is no share"),
        ("[accuracy]\nmin-agreement = true", "True is no share"),
        ("[accuracy]\nmax-drop = -0.1", "is no share"),
        ("[accuracy]\nmin-sqnr = 1e9", "is no number of -1000 to 1000"),
        ("[accuracy]\nreference = 3", "3 is no text; write it in quotes"),
        ('[accuracy]\nreference = " "', "is no text"),
        ("[provenance]\nrequired = 1", "1 is neither true nor false"),
        ('[operators]\nproviders = ["gpu"]', "'gpu' is none of the words"),
        ('[operators]\nforbid = "Loop"', "'Loop' is no list of texts"),
        ("[operators]\nforbid = [1]", "1 is no text"),
        ('[checks]\nskip = ["sise"]', "'sise' is none of the words for it; did you mean 'size'"),
        ('[checks]\nnot-run = "warn"', "'warn' is none of the words for it"),
        ('[targets]\nrun = "x86-64-avx3"', r"\[targets\] run: no target is named 'x86-64-avx3'; did you mean"),
        ('[targets]\nrequire = "x68"', r"\[targets\] require: no target is named 'x68'"),
        ('[saturation]\ntarget = "ssh://a"', r"\[saturation\] target: no target is named 'ssh://a'"),
        ('[latency]\ntarget = "x86"', r"\[latency\] target: 'x86' is more than one target"),
        ('[opset]\nort = "new"', r"\[opset\] ort: 'new' is no release of ONNX Runtime"),
        ('[audit]\nrules = "riscv"', "'riscv' is none of the words for it"),
        ("[size", "is not TOML"),
        ("a = " + "[" * 100_000, "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
        (b"#" * (2**20 + 1), "is too large for a policy"),
    ],
)
def test_wrong_ones(text: str | bytes, why: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SpecError, match=why) as error:
        read_policy(path)
    assert str(path) in str(error.value)


def test_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot read the policy"):
        read_policy(tmp_path / "edge.toml")
    with pytest.raises(SpecError, match="cannot read the policy"):
        read_policy(tmp_path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = [(t.name, spelled(k)) for t in fields(Policy) for k in fields(getattr(Policy(), t.name))]


@given(st.sampled_from(KEYS), VALUES)
def test_any_value_is_taken_or_refused_in_words(key: tuple[str, str], value: object) -> None:
    refused = ""
    try:
        Policy().with_tables({key[0]: {key[1]: value}}, Path())
    except SpecError as error:
        refused = str(error)
    assert refused == "" or refused.startswith(f"[{key[0]}] {key[1]}: ")
