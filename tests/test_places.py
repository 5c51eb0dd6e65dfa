"""What is read is never written over, and results never share a file."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxopt.errors import ModelError, OutputError
from onnxopt.job import DataOptions, optimize
from onnxopt.places import check_places


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with its weights beside it."""
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17]> g (float[N,2] x) => (float[N,2] y) { y = MatMul (x, w) }'
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(2, dtype=np.float32), "w"))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    np.savez(tmp_path / "c.npz", x=np.zeros((4, 2), np.float32))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("a photo")
    return tmp_path / "m.onnx"


@pytest.mark.parametrize("option", ["output", "report", "log_file"])
@pytest.mark.parametrize("name", ["m.onnx", "weights.bin", "c.npz", "photos/a.png", "other/../c.npz", "link.onnx"])
def test_what_is_read_is_not_written(option: str, name: str, model: Path) -> None:
    folder = model.parent
    (folder / "other").mkdir()
    (folder / "link.onnx").symlink_to(model)
    with pytest.raises(OutputError, match=r"is the input: name another|read or written for something else: name"):
        check_places([model], [folder / "c.npz", folder / "photos", "module:name"], **{option: folder / name})


def test_results_do_not_share_a_file(model: Path) -> None:
    new = model.with_name("new")
    for pair in (("output", "report"), ("output", "log_file"), ("report", "log_file")):
        with pytest.raises(OutputError, match=f"--{pair[1].replace('_', '-')} names .*new, which is read or written"):
            check_places([model], **dict.fromkeys(pair, new))


def test_in_place_only_the_output_may_be_the_input(model: Path) -> None:
    check_places([model], output=model, in_place=True)
    with pytest.raises(OutputError, match="--report names"):
        check_places([model], output=model, in_place=True, report=model)
    with pytest.raises(OutputError, match="-o names"):
        check_places([model], [model.with_name("c.npz")], output=model.with_name("c.npz"), in_place=True)


def test_other_files_are_free(model: Path) -> None:
    folder = model.parent
    (folder / "r.json").write_text("{}")
    check_places([model], [folder, None], output=folder / "o.onnx", report=folder / "r.json", log_file=folder / "log")


@pytest.mark.parametrize(
    ("place", "message"),
    [(".", "is a folder: name a file with --report"), ("/dev/null", "is a device: "), ("no/r.json", "cannot write ")],
)
def test_places_that_take_no_file(place: str, message: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    with pytest.raises(OutputError, match=message):
        check_places([model], report=Path(place))


def test_a_source_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        check_places([tmp_path / "none.onnx"])


def test_the_job_looks_first(model: Path) -> None:
    data = model.with_name("c.npz")
    before = data.read_bytes()
    with pytest.raises(OutputError, match=r"-o names .*c\.npz"):
        optimize(model, data, [], data=DataOptions(data=data))
    assert data.read_bytes() == before
