"""The table of releases: what it says of the one installed here is what that says itself."""

import itertools

import onnx
import pytest
from onnx import TensorProto, helper

from onnxopt.errors import ExecutionError, SpecError
from onnxopt.runtime import session
from onnxopt.runtime.releases import NEWEST, RELEASES, find_release, parse_version


def relu(ir: int, **opsets: int) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    imports = [helper.make_opsetid({"onnx": "", "ml": "ai.onnx.ml"}[d], v) for d, v in opsets.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir)


def loads(model: onnx.ModelProto, path) -> bool:
    path.write_bytes(model.SerializeToString())
    try:
        session.Session(path)
    except ExecutionError:
        return False
    return True


def test_the_installed_release_reads_what_the_table_says(tmp_path) -> None:
    release = find_release(parse_version(session.__version__))
    assert release is not None
    if release.version != parse_version(session.__version__):
        pytest.skip("the installed release is newer than the table")
    path = tmp_path / "m.onnx"
    assert loads(relu(release.ir, onnx=release.opset, ml=release.ml), path)
    assert not loads(relu(release.ir, onnx=release.opset + 1), path)
    assert not loads(relu(release.ir, onnx=17, ml=release.ml + 1), path)
    assert not loads(relu(release.ir + 1, onnx=17), path)


def test_releases_only_ever_read_more() -> None:
    assert [r.version for r in RELEASES] == [(1, minor) for minor in range(15, 15 + len(RELEASES))]
    for before, after in itertools.pairwise(RELEASES):
        assert (before.opset, before.ml, before.ir) <= (after.opset, after.ml, after.ir)


def test_finding_one() -> None:
    found = find_release((1, 16))
    assert found is not None
    assert (str(found), found.opset, found.ir) == ("1.16", 19, 9)
    assert find_release((9, 0)) is NEWEST
    assert find_release((1, 3)) is None


@pytest.mark.parametrize(("text", "version"), [("1.16", (1, 16)), (" 1.16.3 ", (1, 16)), ("2.0.0", (2, 0))])
def test_a_version(text: str, version: tuple[int, int]) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize("text", ["", "1", "1.x", "v1.16", "1.16.3.4", "1.99999", "-1.2"])
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(SpecError, match="is no release of ONNX Runtime"):
        parse_version(text)
