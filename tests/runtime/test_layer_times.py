"""Times of layers at other channel counts: what belongs to a layer, and the table that keeps them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.errors import ExecutionError
from onnxopt.graph.model import Model
from onnxopt.numerics.packing import packed
from onnxopt.runtime import layer_times
from onnxopt.runtime.layer_times import Layer, LayerTimes
from onnxopt.runtime.profile import Recording

SMALL = Layer("Conv", (1, 16, 8, 8), 16, (1, 1))
LARGE = Layer("Conv", (1, 64, 24, 24), 64, (3, 3), 1, (("pads", (1, 1, 1, 1)),))


def layers(model: Model) -> list[Layer | None]:
    shapes = Context(model, open_dataset(None, model.inputs, samples=1)).shapes(model)
    return [Layer.of(node, shapes) for node in model.graph.nodes]


def test_a_layer_is_known_by_its_sizes(build: Callable[..., Model]) -> None:
    model = build(
        """ a = Conv <pads = [1,1,1,1], strides = [2,2]> (x, k)
            b = ConvTranspose <group = 2, auto_pad = "SAME_UPPER"> (a, t)
            c = Flatten (b)
            d = Gemm <transB = 1> (c, v)
            e = MatMul (d, w)
            y = MatMul (e, f) """,
        "float[12,8,3,3] k, float[12,3,2,2] t, float[7,384] v, float[7,5] w, float[2,5,3] f",
    )
    geometry = (("pads", (1, 1, 1, 1)), ("strides", (2, 2)))
    assert layers(model) == [
        Layer("Conv", (1, 8, 16, 16), 12, (3, 3), 1, geometry),
        Layer("ConvTranspose", (1, 12, 8, 8), 6, (2, 2), 2, (("auto_pad", "SAME_UPPER"),)),
        None,
        Layer("Gemm", (1, 384), 7),
        Layer("MatMul", (1, 7), 5),
        None,
    ]


def test_other_channel_counts() -> None:
    assert LARGE.resized(40, 48).weight == (48, 40, 3, 3)
    depthwise = Layer("Conv", (1, 32, 8, 8), 32, (3, 3), 32)
    assert depthwise.resized(24, 24).group == 24
    assert depthwise.resized(24, 24).weight == (24, 1, 3, 3)
    assert Layer("Conv", (1, 32, 8, 8), 64, (3, 3), 4).resized(16, 32).group == 2
    assert Layer("Conv", (1, 32, 8, 8), 64, (3, 3), 4).resized(20, 64).weight == (64, 5, 3, 3)
    assert Layer("ConvTranspose", (1, 8, 4, 4), 6, (2, 2), 2).weight == (8, 3, 2, 2)


def test_more_work_takes_longer() -> None:
    times = LayerTimes()
    times.measure([SMALL, LARGE])
    assert times.seconds(LARGE) > 5 * times.seconds(SMALL)
    assert times.seconds(LARGE) < 0.1


@pytest.mark.parametrize(
    "layer",
    [
        Layer("Conv", (2, 3, 16, 16), 18, (3, 3), 1, (("strides", (2, 2)),)),
        Layer("Conv", (1, 8, 32), 12, (3,), 1, (("dilations", (2,)),)),
        Layer("Conv", (1, 24, 9, 7), 24, (3, 3), 24, (("auto_pad", "SAME_UPPER"),)),
        Layer("Conv", (1, 18, 9, 7), 6, (1, 1)),
        Layer("ConvTranspose", (1, 16, 6, 6), 8, (2, 2), 1, (("strides", (2, 2)),)),
        Layer("Gemm", (4, 300), 200),
        Layer("MatMul", (4, 300), 200),
    ],
    ids=str,
)
def test_every_kind_of_layer_can_be_timed(layer: Layer) -> None:
    assert 0 <= LayerTimes().seconds(layer) < 0.1


def test_what_cannot_run_is_refused() -> None:
    with pytest.raises(ExecutionError):
        LayerTimes().seconds(Layer("Conv", (1, 16, 2, 2), 16, (5, 5)))


def test_a_layer_pays_for_the_layout_that_it_needs() -> None:
    """The first reads what was taken apart for it, and has blocks made; the second's reader takes them apart."""

    def kernel(op: str, x: str, y: str, name: str) -> onnx.NodeProto:
        return onnx.helper.make_node(op, [x], [y], name)

    kernels = [
        kernel("ReorderInput", "picture", "a", "first"),
        kernel("Conv", "a", "b", "before onnxopt.0_nchwc"),
        kernel("ReorderOutput", "b", "c", "apart"),
        kernel("Conv", "c", "d", "onnxopt.0."),
        kernel("ReorderInput", "d", "e", "made"),
        kernel("Conv", "e", "f", "behind onnxopt.0_nchwc"),
        kernel("Conv", "a", "g", "before onnxopt.1_nchwc"),
        kernel("Conv", "g", "h", "onnxopt.1._nchwc"),
        kernel("ReorderOutput", "h", "i", "not mine"),
        kernel("Conv", "i", "j", "behind onnxopt.1_nchwc"),
    ]
    times = {k.name: [10**i] for i, k in enumerate(kernels)}
    found = layer_times._spent(Recording(kernels, times, 1, 1.0e9))
    assert found == pytest.approx({0: 11100e-6 + 0.0, 1: 10.0})


def test_the_table_outlives_the_process(tmp_path: Path) -> None:
    first = LayerTimes(folder=tmp_path)
    first.measure([SMALL, SMALL, LARGE])
    path = tmp_path / "layer-times.json"
    ((where, table),) = json.loads(path.read_text()).items()
    assert len(table) == 2
    path.write_text(json.dumps({where: dict.fromkeys(table, 0.25), "elsewhere": {"layer": 1.0}}))
    second = LayerTimes(folder=tmp_path)
    assert second.seconds(SMALL) == 0.25
    second.seconds(Layer("Gemm", (1, 8), 8))
    after = json.loads(path.read_text())
    assert after["elsewhere"] == {"layer": 1.0}
    assert len(after[where]) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["layer-times.json"]


def test_threads_have_a_table_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_times, "_measured", lambda part, threads: [0.5] * len(part))
    for threads in (1, 2):
        LayerTimes(threads, tmp_path).seconds(SMALL)
    assert len(json.loads((tmp_path / "layer-times.json").read_text())) == 2


@pytest.mark.parametrize(
    "text", ["", "{", "\x00\xff", "[1]", "3", '{"a": 3}', '{"%s": {"%s": "x"}}', '{"%s": {"%s": NaN}}',
             '{"%s": {"%s": -1.0}}', '{"%s": {"%s": 1e999}}', '{"%s": [0.5]}', "[" * 100_000]
)  # fmt: skip
def test_a_damaged_file_is_made_anew(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_times, "_measured", lambda part, threads: [0.5] * len(part))
    path = tmp_path / "layer-times.json"
    key = layer_times._key(SMALL).replace('"', '\\"')
    where = LayerTimes()._where
    path.write_bytes(text.replace("%s", where, 1).replace("%s", key).encode("latin-1"))
    assert LayerTimes(folder=tmp_path).seconds(SMALL) == 0.5
    assert json.loads(path.read_text())[where] == {layer_times._key(SMALL): 0.5}


def test_the_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "layer-times.json"
    path.write_text(json.dumps({"elsewhere": {str(i): float(i) for i in range(100)}}))
    monkeypatch.setattr(layer_times, "_MAX_BYTES", 1500)
    monkeypatch.setattr(layer_times, "_MAX_ENTRIES", 100)
    monkeypatch.setattr(layer_times, "_measured", lambda part, threads: [0.5] * len(part))
    times = LayerTimes(folder=tmp_path)
    times.measure(Layer("Gemm", (1, 8), n) for n in range(1, 12))
    assert list(json.loads(path.read_text())) == [times._where]
    monkeypatch.setattr(layer_times, "_MAX_ENTRIES", 2)
    times.seconds(Layer("Gemm", (1, 8), 99))
    (kept,) = json.loads(path.read_text()).values()
    assert [json.loads(k)[2] for k in kept] == [11, 99]


def test_a_folder_that_cannot_be_written_to_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert LayerTimes(folder=tmp_path / "file" / "folder").seconds(SMALL) > 0


def test_large_layers_are_timed_apart() -> None:
    large = Layer("Conv", (1, 64, 512, 512), 64, (1, 1))
    room = layer_times._elements, layer_times._ELEMENTS, layer_times._TOGETHER
    assert [len(p) for p in packed([SMALL, large, large, *[SMALL] * 40], *room)] == [2, 32, 9]
    assert np.prod(large.input) * 2 < layer_times._ELEMENTS
