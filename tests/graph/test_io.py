"""Files: what is refused and why, external data, atomic writes."""

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.errors import ExternalDataError, ModelError, OutputError
from onnxopt.graph import io
from onnxopt.graph.io import load, save


def proto(values: np.ndarray | None = None, opset: int = 17) -> onnx.ModelProto:
    values = np.arange(600, dtype=np.float32) if values is None else values
    w = numpy_helper.from_array(values, "w")
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(values.shape)) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"], name="add")], "g", infos[:1], infos[1:], [w])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def external(folder: Path, location: str = "w.bin", **entries: str) -> Path:
    """A model whose weights lie in a file beside it; ``entries`` overrides what the model says of them."""
    model = proto()
    tensor = model.graph.initializer[0]
    (folder / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": location, "offset": "0", "length": "2400"} | entries).items():
        tensor.external_data.add(key=key, value=value)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def test_a_missing_file(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*nothing\.onnx: No such file"):
        load(tmp_path / "nothing.onnx")


def test_a_folder(tmp_path) -> None:
    with pytest.raises(ModelError, match="is a folder; name the"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello, this is text\n", b"\x08\x08", bytes(range(256))])
def test_not_onnx(content: bytes, tmp_path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match="is not an ONNX model"):
        load(tmp_path / "m.onnx")


def test_a_truncated_file(tmp_path) -> None:
    (tmp_path / "m.onnx").write_bytes(proto().SerializeToString()[:1000])
    with pytest.raises(ModelError, match="is not an ONNX model, or was cut off"):
        load(tmp_path / "m.onnx")


def test_an_opset_that_is_too_old(tmp_path) -> None:
    onnx.save(proto(opset=6), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="uses opset 6; 7 is the oldest supported"):
        load(tmp_path / "m.onnx")


def test_nan_in_the_weights(tmp_path) -> None:
    onnx.save(proto(np.array([1, np.nan, 2], np.float32)), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"weights 'w' .* contain NaN"):
        load(tmp_path / "m.onnx")


def test_infinity_in_the_weights_is_allowed(tmp_path) -> None:
    """Attention masks are made of it."""
    onnx.save(proto(np.array([1, -np.inf], np.float32)), tmp_path / "m.onnx")
    assert load(tmp_path / "m.onnx").constants()[0].values[1] == -np.inf


def test_a_cycle(tmp_path) -> None:
    model = proto()
    model.graph.node.append(helper.make_node("Relu", ["b"], ["a"], name="one"))
    model.graph.node.append(helper.make_node("Relu", ["a"], ["b"], name="two"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="cycle through node 'one'"):
        load(tmp_path / "m.onnx")


def test_a_tensor_that_nothing_makes(tmp_path) -> None:
    model = proto()
    model.graph.node[0].input[1] = "ghost"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"node 'add' \(Add\) read 'ghost', which nothing"):
        load(tmp_path / "m.onnx")


def test_one_name_for_two_tensors(tmp_path) -> None:
    model = proto()
    model.graph.node.append(helper.make_node("Relu", ["x"], ["y"]))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="name 'y' is given to two tensors"):
        load(tmp_path / "m.onnx")


def test_unsorted_nodes_are_sorted(tmp_path) -> None:
    model = proto()
    model.graph.node[0].output[0] = "h"
    model.graph.node.insert(0, helper.make_node("Relu", ["h"], ["y"], name="relu"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert [n.name for n in load(tmp_path / "m.onnx").graph.nodes] == ["add", "relu"]


def test_external_data_is_mapped_and_stays_external(tmp_path) -> None:
    model = load(external(tmp_path))
    assert isinstance(model.constants()[0].values.base, np.memmap | np.ndarray)
    assert not model.constants()[0].values.flags.writeable
    save(model, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").stat().st_size == 2400
    assert len((tmp_path / "out.onnx").read_bytes()) < 1000
    np.testing.assert_array_equal(load(tmp_path / "out.onnx").constants()[0].values, np.arange(600, dtype=np.float32))
    assert io.files_of(tmp_path / "out.onnx") == [tmp_path / "out.onnx", tmp_path / "out.onnx.data"]


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "sub/../../w.bin"])
def test_external_data_outside_the_folder(location: str, tmp_path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(2400))
    with pytest.raises(ExternalDataError, match=r"tensor 'w' keeps its data in .*outside .*--allow-external-root"):
        load(external(inner, location))


def test_a_link_that_leaves_the_folder(tmp_path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(2400))
    path = external(inner, "link.bin")
    (inner / "link.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(ExternalDataError, match="outside"):
        load(path)
    assert load(path, external_root=tmp_path).constants()[0].values.sum() == 0


def test_the_allowed_root_widens_the_folder(tmp_path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(2400))
    assert load(external(inner, "../w.bin"), external_root=tmp_path).constants()[0].values.shape == (600,)


def test_missing_external_data(tmp_path) -> None:
    path = external(tmp_path)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ExternalDataError, match=r"tensor 'w' keeps its data in 'w.bin', which is not there"):
        load(path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": "4"}, "needs 2400 bytes, but .* at offset 4 of w.bin, which has 2400"),
        ({"offset": "99999999999999999999999"}, "is no size in bytes"),
        ({"offset": "-1"}, "is no size in bytes"),
        ({"length": "10"}, "needs 2400 bytes, but the model names 10"),
        ({"location": ""}, "names no data file"),
    ],
)
def test_wrong_places_in_external_data(entries: dict[str, str], message: str, tmp_path) -> None:
    with pytest.raises(ExternalDataError, match=message):
        load(external(tmp_path, **entries))


def test_attribute_tensors_with_external_data_are_embedded(tmp_path) -> None:
    model = proto()
    fill = numpy_helper.from_array(np.float32([3]), "fill")
    (tmp_path / "f.bin").write_bytes(fill.raw_data)
    fill.ClearField("raw_data")
    fill.data_location = TensorProto.EXTERNAL
    fill.external_data.add(key="location", value="f.bin")
    model.graph.node.append(helper.make_node("ConstantOfShape", ["s"], ["z"], value=fill))
    model.graph.initializer.append(numpy_helper.from_array(np.int64([2]), "s"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "elsewhere").mkdir()
    save(load(tmp_path / "m.onnx"), tmp_path / "elsewhere" / "m.onnx")
    kept = onnx.load(tmp_path / "elsewhere" / "m.onnx").graph.node[-1].attribute[0].t
    assert numpy_helper.to_array(kept) == [3]


def test_saving_replaces_whole_files_only(tmp_path) -> None:
    onnx.save(proto(), tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    (tmp_path / "out.onnx").write_bytes(b"before")
    with io.staged(model, tmp_path / "out.onnx") as staging:
        assert (tmp_path / "out.onnx").read_bytes() == b"before"
        assert staging.size_bytes == staging.path.stat().st_size
        staging.annotate({"who": "test"})
    assert (tmp_path / "out.onnx").read_bytes() == b"before"
    save(model, tmp_path / "out.onnx")
    assert load(tmp_path / "out.onnx").to_proto() == proto()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "out.onnx"]


def test_a_folder_that_is_not_there(tmp_path) -> None:
    onnx.save(proto(), tmp_path / "m.onnx")
    with pytest.raises(OutputError, match=r"cannot write .*No such file or directory; choose another"):
        save(load(tmp_path / "m.onnx"), tmp_path / "no" / "out.onnx")


SAVE = """
import sys
from onnxopt.graph.io import load, save
from onnxopt.errors import OnnxOptError
try:
    save(load(sys.argv[1]), sys.argv[2])
except OnnxOptError as error:
    sys.exit(str(error))
"""


def run_save(source: Path, target: Path, **options) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run(
        [sys.executable, "-c", SAVE, str(source), str(target)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        **options,
    )


def test_a_full_disk(tmp_path) -> None:
    """A limit on the size of files makes the system refuse the write half way, as a full disk does."""
    onnx.save(proto(np.zeros(100_000, np.float32)), tmp_path / "m.onnx")
    (tmp_path / "out").mkdir()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = run_save(tmp_path / "m.onnx", tmp_path / "out" / "o.onnx", preexec_fn=limit)
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert "free some space" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_read_only_folder(tmp_path) -> None:
    onnx.save(proto(), tmp_path / "m.onnx")
    folder = tmp_path / "out"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        if os.geteuid() == 0:  # root may write anywhere but where the system itself forbids it
            target, reason = Path("/proc/o.onnx"), "No such file or directory|Permission denied|not permitted"
        else:
            target, reason = folder / "o.onnx", "Permission denied"
        with pytest.raises(OutputError, match=f"cannot write .*: ({reason})"):
            save(load(tmp_path / "m.onnx"), target)
        assert list(folder.iterdir()) == []
    finally:
        folder.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("missing", [True, False])
def test_check_writable(missing: bool, tmp_path) -> None:
    if missing:
        with pytest.raises(OutputError, match="cannot write"):
            io.check_writable(tmp_path / "no" / "m.onnx")
    else:
        io.check_writable(tmp_path / "m.onnx")
        assert list(tmp_path.iterdir()) == []


def spoiled(folder: Path, change) -> Path:
    model = proto()
    change(model)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.graph.initializer[0].dims.__setitem__(0, 10_000),
        lambda m: setattr(m.graph.initializer[0], "data_type", 999),
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 999),
        lambda m: m.graph.node.append(helper.make_node("Constant", [], [], value_int=1)),
        lambda m: m.graph.node.append(helper.make_node("Constant", [], ["c"], value_int=m.graph.initializer[0])),
    ],
    ids=["dims", "data type", "element type", "constant without output", "wrong attribute"],
)
def test_damage_is_one_line(change, tmp_path) -> None:
    with pytest.raises(ModelError, match=r"m\.onnx is damaged \(.*\); copy or export it again"):
        load(spoiled(tmp_path, change))


def test_sparse_weights_are_read_and_kept(tmp_path) -> None:
    sparse = onnx.SparseTensorProto(
        values=numpy_helper.from_array(np.float32([5, 6]), "s"),
        indices=numpy_helper.from_array(np.int64([1, 3])),
        dims=[600],
    )

    def change(model: onnx.ModelProto) -> None:
        model.graph.sparse_initializer.append(sparse)
        model.graph.node.append(helper.make_node("Add", ["x", "s"], ["z"]))

    model = load(spoiled(tmp_path, change))
    assert model.constants()[1].values.sum() == 11
    sparse.values.CopyFrom(numpy_helper.from_array(np.float32([5, np.nan]), "s"))
    with pytest.raises(ModelError, match="NaN"):
        load(spoiled(tmp_path, change))


def test_nan_in_bfloat16(tmp_path) -> None:
    import ml_dtypes

    values = np.array([1, np.nan], ml_dtypes.bfloat16)
    with pytest.raises(ModelError, match=r"weights 'b' .* contain NaN"):
        load(spoiled(tmp_path, lambda m: m.graph.initializer.append(numpy_helper.from_array(values, "b"))))


def test_an_input_larger_than_any_memory(tmp_path) -> None:
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2**62])
    with pytest.raises(ModelError, match=r"the input x: float32\[4611686018427387904\] .* larger than any memory"):
        load(spoiled(tmp_path, lambda m: m.graph.input[0].CopyFrom(shape)))


def test_a_negative_dimension_is_a_free_one(tmp_path) -> None:
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, [-1, 600])
    path = spoiled(tmp_path, lambda m: m.graph.input[0].CopyFrom(shape))
    model = load(path)
    assert model.inputs[0].shape == (None, 600)
    assert model.to_proto().graph.input[0] == shape


def test_a_local_function_reads_nothing_from_outside(tmp_path) -> None:
    outside = numpy_helper.from_array(np.zeros(600, np.float32), "secret")
    outside.ClearField("raw_data")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="../../../etc/passwd")
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["k"], value=outside)],
        "b",
        [],
        [helper.make_tensor_value_info("k", TensorProto.FLOAT, [600])],
    )
    body = [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)]
    function = helper.make_function("local", "F", ["c"], ["y"], body, [helper.make_opsetid("", 17)])
    with pytest.raises(ExternalDataError, match="outside"):
        load(spoiled(tmp_path, lambda m: m.functions.append(function)))


@pytest.mark.parametrize("place", ["{folder}/w.bin", "sub/../w.bin"])
def test_absolute_paths_and_steps_up_are_refused_even_inside(place: str, tmp_path) -> None:
    (tmp_path / "sub").mkdir()
    path = external(tmp_path, place.format(folder=tmp_path))
    with pytest.raises(ExternalDataError, match="--allow-external-root"):
        load(path)
    assert load(path, external_root=tmp_path).constants()[0].values.shape == (600,)


def test_weights_that_another_model_reads_are_not_overwritten(tmp_path) -> None:
    """A model saved under a name whose weights file is there already, as its own source of weights."""
    path = external(tmp_path, "out.onnx.data")
    (tmp_path / "w.bin").rename(tmp_path / "out.onnx.data")
    before = (tmp_path / "out.onnx.data").read_bytes()
    save(load(path), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").read_bytes() == before
    assert io.files_of(tmp_path / "out.onnx")[1].name == "out.onnx.1.data"


def test_a_replaced_model_leaves_no_weights_behind(tmp_path) -> None:
    path = external(tmp_path)
    for _ in range(3):
        save(load(path), tmp_path / "out.onnx")
        names = sorted(p.name for p in tmp_path.iterdir())
        assert len(names) == 4
        assert load(tmp_path / "out.onnx").constants()[0].values[-1] == 599


def test_saving_in_place_again_and_again(tmp_path) -> None:
    path = external(tmp_path)
    for _ in range(3):
        with io.staged(load(path), path) as staging:
            staging.annotate({"onnxopt.version": "0"})
            staging.commit()
    assert load(path).constants()[0].values[-1] == 599
    assert len(list(tmp_path.glob("m.onnx*"))) == 2
    assert (tmp_path / "w.bin").exists()


def test_links_and_modes_are_kept(tmp_path) -> None:
    onnx.save(proto(), tmp_path / "real.onnx")
    (tmp_path / "real.onnx").chmod(0o600)
    (tmp_path / "link.onnx").symlink_to("real.onnx")
    model = load(tmp_path / "link.onnx")
    model.header.producer_name = "new"
    save(model, tmp_path / "link.onnx")
    assert (tmp_path / "link.onnx").is_symlink()
    assert load(tmp_path / "real.onnx").header.producer_name == "new"
    assert stat.S_IMODE((tmp_path / "real.onnx").stat().st_mode) == 0o600


def test_no_empty_weights_file(tmp_path) -> None:
    model = proto(np.zeros(4, np.float32))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0)
    save(load(tmp_path / "m.onnx"), tmp_path / "out.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "out.onnx", "w"]
