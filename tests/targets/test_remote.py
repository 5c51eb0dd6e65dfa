"""Devices behind a real sshd on loopback: what works, each thing that can go wrong, and that nothing stays there."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.errors import ExecutionError, ExternalDataError, OnnxOptError, TargetError
from onnxopt.runtime import local
from onnxopt.runtime.exchange import Job
from onnxopt.runtime.local import run_in_child
from onnxopt.targets import far_end, ssh
from onnxopt.targets.find import find_way
from onnxopt.targets.folders import arm64_folder
from onnxopt.targets.remote import Device
from onnxopt.targets.spec import Address, parse_targets

HEAD = '<ir_version: 9, opset_import: ["" : 17]> '
X = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
HERE = "127.0.0.1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An sshd; what had to be unpacked for it is kept between runs of the tests."""
    spec = spec_from_file_location("sshd", Path(__file__).with_name("sshd.py"))
    assert spec is not None
    assert spec.loader is not None
    sshd = module_from_spec(spec)
    spec.loader.exec_module(sshd)
    try:
        found = sshd.Sshd(tmp_path_factory.mktemp("sshd"), Path(__file__).parents[2] / ".pytest_cache" / "sshd")
    except sshd.Missing as why:
        pytest.skip(str(why))
    yield found
    found.stop()


@pytest.fixture(autouse=True)
def device(server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The server, reached with the user's key. After each test nothing is left on it, and nothing runs there."""
    monkeypatch.setenv("PATH", str(server.client()), prepend=os.pathsep)
    server.known(server.folder / "host.pub")
    yield server
    wait_for(lambda: not server.left() and not server.processes())
    assert server.left() == []
    assert server.processes() == []


@pytest.fixture
def relu(tmp_path: Path) -> Path:
    path = tmp_path / "relu.onnx"
    onnx.save(
        onnx.parser.parse_model(
            HEAD + "g (float[N,3] x) => (float[N,3] y, int64[2] s) { y = Relu (x)  s = Shape (x) }"
        ),
        path,
    )
    return path


def wait_for(what: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not what() and time.monotonic() < until:
        time.sleep(0.02)


@pytest.fixture
def stand_in(device: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The device without ssh, where that is not what matters."""
    monkeypatch.setenv("PATH", str(device.stand_in()), prepend=os.pathsep)
    return device


def at(server: Any, python: str = sys.executable, **more: Any) -> Device:
    return Device(Address(HERE, None, server.port, python), **more)


def weighted(path: Path, weights: np.ndarray, location: str = "") -> Path:
    """y = x + weights, in a file of their own if it has a name."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    if location:
        (path.parent / location).parent.mkdir(parents=True, exist_ok=True)
        onnx.external_data_helper.convert_model_to_external_data(model, location=location, size_threshold=0)
    onnx.save(model, path)
    return path


def test_two_models_and_several_feeds(device: Any, relu: Path, tmp_path: Path) -> None:
    """From the address to the same bits as here; odd names, and weights in a folder beside their model."""
    added = weighted(
        tmp_path / 'it\'s "a"\n $HOME' / "m.onnx", np.arange(6, dtype=np.float32).reshape(2, 3), "w w'\"/$x.bin"
    )
    (wanted,) = parse_targets(f"ssh://{HERE}:{device.port}?python={sys.executable}&threads=2")
    way = find_way(wanted)
    assert isinstance(way, Device)
    assert (way.how, way.timed) == ("on the device, by ssh", True)
    job = Job(models=(relu, added), feeds=[X, {"x": -X["x"]}], runs=3)
    there, here = way.run(job), run_in_child(job)
    assert [r.sha256 for r in there.runs] == [r.sha256 for r in here.runs]
    assert [len(r.run_s) for r in there.runs] == [6, 6]
    np.testing.assert_array_equal(there.runs[0].outputs[1]["s"], [2, 3])
    np.testing.assert_array_equal(there.runs[1].outputs[0]["y"], 2 * X["x"])
    assert (there.onnxruntime, there.numpy) == (onnxruntime.__version__, np.__version__)


def test_a_probe_says_what_is_there(device: Any) -> None:
    """A shell that greets is no trouble."""
    python = device.interpreter(
        "greets", f'case $1 in -c) echo welcome; printf hello;; esac; exec {sys.executable} "$@"'
    )
    found = at(device, python).probe()
    assert found.runs == ()
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert found.machine == os.uname().machine


def test_what_the_runner_gets(device: Any, relu: Path, tmp_path: Path) -> None:
    """The threads of the address, and an environment without telemetry and without what is the user's own."""
    body = f'case "$1" in *runner.py) cp "$2" "{tmp_path}"; env > "{tmp_path}/env";; esac; exec {sys.executable} "$@"'
    python = device.interpreter("tells", f"export SECRET=1; {body}")
    run = Device(Address(HERE, None, device.port, python, threads=3)).run(Job(models=(relu,), feeds=[X], threads=1))
    assert run.runs[0].outputs[0]["y"].shape == (2, 3)
    assert json.loads((tmp_path / "request.json").read_text())["threads"] == 3
    environment = (tmp_path / "env").read_text().splitlines()
    assert "ORT_DISABLE_TELEMETRY=1" in environment
    assert "OMP_NUM_THREADS=1" in environment
    assert not [line for line in environment if line.startswith(("SSH_", "XDG_"))]


def test_an_interpreter_in_the_home_folder(device: Any) -> None:
    """The device's shell never sees the tilde, so that it is no expansion."""
    with pytest.raises(TargetError, match=r"there is no '~/no such/python' that can be started"):
        at(device, "~/no such/python").probe()


def test_the_same_bits_on_emulated_arm(device: Any, tmp_path: Path) -> None:
    """An int8 model behind ssh on an aarch64 interpreter gives what it gives here."""
    folder = arm64_folder()
    if not (folder / "bin/qemu-aarch64").exists():
        pytest.skip("emulated ARM is not set up: onnxopt targets setup arm64")
    system = folder / "sysroot"
    emulator = f"'{folder}/bin/qemu-aarch64' -cpu cortex-a72 -L '{system}' '{system}/usr/bin/python3.11'"
    python = device.interpreter("python-arm64", f"PYTHONPATH='{folder}/site' exec {emulator} \"$@\"")
    text = (
        "g (float[4,8] x) => (float[4,5] y) <float s = {0.02}, uint8 z = {128}, float sw = {0.01}, int8 zw = {0}> {"
        "  q = QuantizeLinear (x, s, z)  r = QLinearMatMul (q, s, z, w, sw, zw, s, z)  y = DequantizeLinear (r, s, z) }"
    )
    model = onnx.parser.parse_model(HEAD + text)
    rng = np.random.default_rng(0)
    model.graph.initializer.append(numpy_helper.from_array(rng.integers(-60, 60, (8, 5), np.int8), "w"))
    onnx.save(model, tmp_path / "int8.onnx")
    feeds = [{"x": rng.standard_normal((4, 8)).astype(np.float32)} for _ in range(3)]
    job = Job(models=(tmp_path / "int8.onnx",), feeds=feeds)
    there = at(device, python).run(job)
    assert there.machine == "aarch64"
    assert there.runs[0].sha256 == run_in_child(job).runs[0].sha256
    assert np.unique(there.runs[0].outputs[0]["y"]).size > 10


def test_a_wrong_host_key(device: Any) -> None:
    device.known(device.folder / "stranger.pub")
    with pytest.raises(TargetError, match=r"Host key verification failed; its host key is not the known one"):
        at(device).probe()


def test_an_unknown_host_key(device: Any) -> None:
    (device.folder / "known_hosts").write_text("")
    with pytest.raises(TargetError, match=r"failed; its host key is not known: connect once by hand"):
        at(device).probe()


def test_a_refused_login(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(device.client("stranger")), prepend=os.pathsep)
    with pytest.raises(TargetError, match=r"no connection to 127.*Permission denied \(publickey\); give the device"):
        at(device).probe()


def test_nothing_listens() -> None:
    with pytest.raises(TargetError, match=r"port 1: Connection refused; is ssh switched on there"):
        Device(Address(HERE, None, 1)).probe()


def test_no_such_host() -> None:
    with pytest.raises(TargetError, match=r"no connection to me@a\.\.b: .*is the name right\?"):
        Device(Address("a..b", "me")).probe()


def test_no_ssh_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match=r"cannot start ssh on this machine \(No such file"):
        Device(Address(HERE)).probe()


def test_an_address_is_never_an_option_nor_code(device: Any, tmp_path: Path) -> None:
    made = tmp_path / "made"
    with pytest.raises(TargetError):
        Device(Address(f"-oProxyCommand=touch {made}")).probe()
    with pytest.raises(TargetError, match="there is no '/x; touch"):
        at(device, f"/x; touch '{made}'").probe()
    with pytest.raises(TargetError, match=r"there is no '\$\(touch"):
        at(device, f"$(touch {made})").probe()
    assert not made.exists()


OLD = "sys.version_info, sys.version = (3, 7, 2), '3.7.2 (default)'"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (f'exec {{python}} -c "import sys; {OLD}; $2"', r"needs Python 3\.8 or newer, not 3\.7\.2 on 127\S*: name a"),
        ("echo 'This account is closed.' >&2; exit 1", r"gave no answer that can be read: This account is closed$"),
        ("exit 0", r"gave no answer that can be read$"),
        ("printf 'a\\033[31mb\\n' >&2; exit 3", r"can be read: a \[31mb$"),
        ("exec yes", r"gave an answer that cannot be read$"),
        ("yes >&2 & sleep 0.3; kill $!; exit 1", r"gave no answer that can be read: y?$"),
    ],
)
def test_something_else_than_the_right_python(stand_in: Any, body: str, message: str) -> None:
    python = stand_in.interpreter("python", body.replace("{python}", sys.executable))
    with pytest.raises(TargetError, match=message):
        at(stand_in, python).probe()


def test_an_interpreter_without_packages(device: Any) -> None:
    python = device.interpreter("python", f'exec {sys.executable} -S "$@"')
    with pytest.raises(
        TargetError, match=r"Python on 127\S* lacks .*: ModuleNotFoundError.*run 'pip install onnxruntime"
    ):
        at(device, python).probe()


@pytest.mark.parametrize("death", ["kill -SEGV $$", "sh -c 'kill -SEGV $$'; exit $?"])
def test_a_crash(stand_in: Any, relu: Path, death: str) -> None:
    python = stand_in.interpreter("python", f'case "$1" in *runner.py) {death};; esac; exec {sys.executable} "$@"')
    with pytest.raises(ExecutionError, match=r"the process that ran the model on 127\S* was ended by SIGSEGV"):
        at(stand_in, python).run(Job(models=(relu,), feeds=[X]))


def test_a_model_that_fails(stand_in: Any, relu: Path) -> None:
    with pytest.raises(ExecutionError, match=r"the model failed to run on 127\S*: InvalidArgument"):
        at(stand_in).run(Job(models=(relu,), feeds=[{"x": np.zeros((2, 4), np.float32)}]))


def test_weights_outside_the_models_folder_stay_here(device: Any, tmp_path: Path) -> None:
    for location in ("../w.bin", str(tmp_path / "w.bin")):
        model = weighted(tmp_path / "in" / "m.onnx", np.zeros((2, 3), np.float32), "w.bin")
        proto = onnx.load(model, load_external_data=False)
        proto.graph.initializer[0].external_data[0].value = location
        onnx.save(proto, model)
        (tmp_path / "w.bin").write_bytes(bytes(24))
        with pytest.raises(ExternalDataError, match="keeps data outside its folder"):
            at(device).run(Job(models=(model,), feeds=[X]))


@pytest.mark.parametrize("what", ["weights", "outputs"])
@pytest.mark.parametrize("limit", ["quota", "disk"])
def test_no_room(device: Any, tmp_path: Path, what: str, limit: str) -> None:
    """256 KB go there or come to be there, where 64 KB have room."""
    model = weighted(tmp_path / "m.onnx", np.zeros((11000, 2, 3), np.float32))
    if what == "outputs":
        text = "g (float[2,3] x) => (float[m,k] y) <int64[2] r = {100, 110}> { y = Tile (x, r) }"
        onnx.save(onnx.parser.parse_model(HEAD + text), model)
    tiny = device.folder / "tiny"
    tiny.mkdir(exist_ok=True)
    room = f'ulimit -f 128; exec {sys.executable} "$@"'
    if limit == "disk":
        mounted = f"mount -t tmpfs -o size=64k tmpfs '{tiny}' && XDG_CACHE_HOME='{tiny}' exec {sys.executable} \"$@\""
        room = f"exec unshare -rm sh '{device.interpreter('mounted', mounted)}' \"$@\""
        room = f'case "$1" in -c) {room};; esac; exec {sys.executable} "$@"'
        if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
            pytest.skip("this machine does not let its users mount a small disk")
    with pytest.raises(TargetError, match=r"127\S* has no room for the job, in ~/\.cache or \$XDG_CACHE_HOME: "):
        at(device, device.interpreter("python", room)).run(Job(models=(model,), feeds=[X]))


def test_nowhere_to_write(stand_in: Any) -> None:
    python = stand_in.interpreter("python", f'XDG_CACHE_HOME=/dev/null/x exec {sys.executable} "$@"')
    with pytest.raises(TargetError, match=r"127\S* cannot do the job: \[Errno 20\] Not a directory"):
        at(stand_in, python).probe()


def test_too_long(device: Any, relu: Path) -> None:
    with pytest.raises(ExecutionError, match=r"the model ran longer than 0\.8 s on 127"):
        at(device).run(Job(models=(relu,), feeds=[X], runs=10**9, timeout_s=0.8))


def test_a_device_that_hangs(device: Any) -> None:
    python = device.interpreter("python", "exec sleep 0.6")
    with pytest.raises(TargetError, match=r"127\S* gave no answer within 0\.\d+ s"):
        at(device, python, patience_s=0.2).run(Job(models=(), feeds=(), timeout_s=0.1))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_connection(device: Any, relu: Path, number: int) -> None:
    """In the middle of a run: an error here, and no process or file there (the fixture looks)."""
    heard: list[OnnxOptError] = []

    def run() -> None:
        try:
            at(device).run(Job(models=(relu,), feeds=[X], runs=10**9))
        except OnnxOptError as error:
            heard.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(device.runners)
    assert device.left()
    for session in device.sessions():
        with contextlib.suppress(ProcessLookupError):  # gone with the one before
            os.kill(session, number)
    thread.join(10)
    (error,) = heard
    assert isinstance(error, TargetError)
    assert str(error).startswith(f"no connection to {HERE}:{device.port}: ")


def test_a_terminated_far_end(device: Any, relu: Path) -> None:
    """It cleans up when it alone is told to end."""
    python = device.interpreter("python", f'echo $$ >> "{device.folder}/pids"; exec {sys.executable} "$@"')
    ended = threading.Thread(target=lambda: (wait_for(device.runners), os.kill(first_pid(device), signal.SIGTERM)))
    ended.start()
    with pytest.raises(TargetError, match="gave no answer that can be read"):
        at(device, python).run(Job(models=(relu,), feeds=[X], runs=10**9))
    ended.join()


def first_pid(device: Any) -> int:
    return int((device.folder / "pids").read_text().split()[0])


def test_folders_of_lost_power_go(stand_in: Any) -> None:
    old, new = stand_in.cache / "onnxopt-job-old", stand_in.cache / "onnxopt-job-new"
    for folder in (old, new):
        (folder / "0").mkdir(parents=True)
    os.utime(old, (0, 0))
    at(stand_in).probe()
    assert stand_in.left() == [str(new), str(new / "0")]
    (new / "0").rmdir()
    new.rmdir()


def zipped(compress: int, name: str = "0.0.0.npy", content: bytes | None = None) -> bytes:
    array = io.BytesIO()
    np.save(array, X["x"])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compress) as archive:
        archive.writestr(name, array.getvalue() if content is None else content)
    return file.getvalue()


SAID = {
    **{"ok": True, "onnxruntime": "1", "numpy": "1", "python": "3", "machine": "m", "providers": [], "used": [[]]},
    **{"load_s": [0], "run_s": [[0]], "names": [["y"]], "sha256": [[{"y": "0"}]]},
}


def answer(said: object, outputs: bytes = b"", sizes: list[object] | None = None, code: object = 0) -> bytes:
    stdout = said if isinstance(said, bytes) else json.dumps(said).encode()
    head = json.dumps({"code": code, "sizes": sizes or [len(stdout), 0, len(outputs)]}).encode()
    return head + b"\n" + stdout + outputs


def replying(stand_in: Any, reply: bytes) -> str:
    """An interpreter that answers any job with this."""
    (stand_in.bin / "reply").write_bytes(reply)
    script = (
        "import sys, json\nline = b''\nwhile not line.startswith(b'{\"token\"'): line = sys.stdin.buffer.readline()\n"
        f"sys.stdout.buffer.write(b'\\n' + json.loads(line)['token'].encode() + b'\\n')\n"
        f"sys.stdout.buffer.write(open({str(stand_in.bin / 'reply')!r}, 'rb').read())\n"
    )
    (stand_in.bin / "hostile.py").write_text(script)
    return str(stand_in.interpreter("python", f"exec {sys.executable} '{stand_in.bin}/hostile.py'"))


def test_what_a_device_says_of_itself_is_only_words(stand_in: Any) -> None:
    """No code that a terminal obeys, and no more than a line."""
    said = {**SAID, "onnxruntime": "1.31\x1b[2J\n" + "x" * 10**6, "names": []}
    version = at(stand_in, replying(stand_in, answer(said))).probe().onnxruntime
    assert version == ("1.31 [2J " + "x" * 300)[:300]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"[]\n", "gave an answer that cannot be read"),
        (b"[" * 4000 + b"\n", "gave an answer that cannot be read"),
        (b"x" * 10**6, "gave an answer that cannot be read"),
        (b"", "gave no answer that can be read"),
        (answer({}, sizes=[2, 0, 2**40]), "gave an answer that cannot be read"),
        (answer({}, sizes=[2, -1, 0]), "gave an answer that cannot be read"),
        (answer({}, sizes=[2, 0]), "gave an answer that cannot be read"),
        (answer({}, code=float("inf")), "gave an answer that cannot be read"),
        (answer({}, sizes=[2, 0, 1000]), "gave no answer that can be read"),
        (answer({}), "gave no answer"),
        (answer({"ok": False, "stage": "run", "error": "\x1b[2J"}), r"failed to run on 127\S*: \[2J"),
        (answer(b"[" * 10**5), "is damaged"),
        (answer({"ok": True}), "is damaged: 'onnxruntime'"),
        (answer(SAID, b"PK no zip"), "is damaged"),
        (answer(SAID, zipped(zipfile.ZIP_DEFLATED, content=bytes(10**7))), "is damaged"),
        (answer(SAID, zipped(zipfile.ZIP_STORED)), "'y' is not what its SHA-256 says"),
        (answer(SAID, zipped(zipfile.ZIP_STORED, "../../0.0.0.npy")), "the output 'y' is missing"),
        (answer(SAID, zipped(zipfile.ZIP_STORED, content=b"cos\nsystem\n(S'false'\ntR.")), "is damaged"),
    ],
    ids=range(18),
)
def test_a_hostile_answer(stand_in: Any, relu: Path, reply: bytes, message: str) -> None:
    """It can lie, but not fill this machine's memory or disk, nor write where it likes."""
    job = Job(models=(relu,), feeds=[X])
    with pytest.raises((TargetError, ExecutionError), match=message):
        at(stand_in, replying(stand_in, reply)).run(job)


def test_the_far_end_scrubs_as_we_do() -> None:
    """It can import nothing of ours, so that it has lists of its own."""
    assert (far_end.KEPT, far_end.SET) == (local._KEPT, local._SET)


def test_the_far_end_is_python_3_8() -> None:
    ast.parse(Path(far_end.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))


def test_what_strangers_say_is_one_short_line() -> None:
    assert ssh.plain("a\r\n\tb\x1b]0;title\x07c" + "x" * 999) == ("a b ]0;title c" + "x" * 999)[:300]
