"""A trap in the place of CPUID is answered as CPUID would, less some bits; any other fault stays one."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from onnxopt.runtime.machine import architecture
from onnxopt.targets import mask

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or architecture() != "x86-64", reason="masking is for Linux on x86-64"
)

# Runs machine code with the trap, or with CPUID itself: (leaf, subleaf) -> [eax, ebx, ecx, edx].
ASK = r"""
import ctypes, json, mmap, sys, threading
def asker(instruction):
    code = mmap.mmap(-1, 64, prot=7)
    code.write(bytes.fromhex("53 4989d0 89f8 89f1") + instruction + bytes.fromhex(
        "418900 41895804 41894808 4189500c 5b c3"))
    call = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(
        ctypes.addressof(ctypes.c_char.from_buffer(code)))
    def ask(leaf, subleaf):
        out = (ctypes.c_uint32 * 4)()
        call(leaf, subleaf, out)
        return list(out)
    ask.code = code
    return ask
trap, real = asker(b"\x0f\xff"), asker(b"\x0f\xa2")
"""


def masked(tmp_path: Path, bits: str, program: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "program.py"
    file.write_text(ASK + program)
    command = [sys.executable, "-I", mask.__file__, "no-library", bits, str(file), "an argument"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_bits_are_taken_out_where_they_are_named_and_nowhere_else(tmp_path: Path) -> None:
    places = [(0, 0), (1, 0), (7, 0), (7, 1), (0x80000001, 0)]
    done = masked(
        tmp_path,
        "1.0.c:0,1.0.c:28,7.0.b:5,7.1.a:4,0x80000001.0.c:0",
        f"print(json.dumps([[f(*p) for f in (trap, real)] for p in {places}]), sys.argv[1:])",
    )
    assert done.returncode == 0, done.stderr
    answers, _, rest = done.stdout.rpartition("[")
    assert rest.strip() == "'an argument']"
    taken = {(1, 0): (2, 1 | 1 << 28), (7, 0): (1, 1 << 5), (7, 1): (0, 1 << 4), (0x80000001, 0): (2, 1)}
    apic = 0xFF << 24  # which core answers
    for place, (shown, real) in zip(places, json.loads(answers), strict=True):
        register, bits = taken.get(place, (0, 0))
        real[register] &= ~bits
        if place == (1, 0):
            shown[1] &= ~apic
            real[1] &= ~apic
        assert shown == real, place


def test_only_leaf_7_has_subleaves_that_count(tmp_path: Path) -> None:
    """Leaf 1 ignores what else is in ECX, leaf 7 does not; upper halves of registers are no part of the question."""
    done = masked(tmp_path, "1.0.d:0,7.0.b:5", "print(trap(1, 9)[3] & 1, trap(7, 1)[1] == real(7, 1)[1])")
    assert done.stdout.split() == ["0", "True"], done.stderr


def test_threads_ask_at_once(tmp_path: Path) -> None:
    program = """
wrong = []
def work():
    for _ in range(200):
        shown, true = trap(7, 0), real(7, 0)
        true[1] &= ~32
        if shown != true: wrong.append((shown, true))
threads = [threading.Thread(target=work) for _ in range(2)]
for t in threads: t.start()
for t in threads: t.join()
print(len(wrong))
"""
    assert masked(tmp_path, "7.0.b:5", program).stdout == "0\n"


@pytest.mark.parametrize("instruction", ["0f0b", "0fb9c0"])
def test_any_other_fault_ends_the_process(tmp_path: Path, instruction: str) -> None:
    done = masked(tmp_path, "", f"asker(bytes.fromhex('{instruction}'))(0, 0); print('alive')")
    assert (done.returncode, done.stdout) == (-4, "")


OTHER = "file = open(__file__[:-10] + 'libonnxruntime.so.1', 'r+b'); sys.other = mmap.mmap(file.fileno(), 1)"


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("trap(7, 0); trap(7, 1)", "masked 2"),
        ("real(7, 0)", "masked 0"),
        (f"trap(7, 0); {OTHER}", "masked 0"),
        ("trap(7, 0); sys.exit(1)", "masked 1"),
    ],
    ids=["asked", "not asked", "another library", "ended early"],
)
def test_it_says_whether_it_was_asked(tmp_path: Path, program: str, said: str) -> None:
    """And that no other library has the kernels."""
    (tmp_path / "libonnxruntime.so.1").write_text("x")
    assert masked(tmp_path, "", program).stderr.splitlines() == [said]


def test_bits_are_read() -> None:
    assert mask.parse("") == {}
    assert mask.parse("7.0.b:5,7.0.b:0,0x80000001.0.c:11") == {(7, 0, "b"): 33, (0x80000001, 0, "c"): 1 << 11}


def test_only_onnx_runtimes_module_is_replaced() -> None:
    finder = mask.Finder("/copy/of/it.so")
    spec = finder.find_spec(mask.MODULE, None)
    assert spec is not None
    assert spec.origin == "/copy/of/it.so"
    assert finder.find_spec("numpy", None) is None


def test_it_needs_nothing_of_ours() -> None:
    """It is a program of its own, with nothing but Python's own modules."""
    tree = ast.parse(Path(mask.__file__).read_text(), feature_version=(3, 8))
    imported = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {str(n.module).split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imported <= set(sys.stdlib_module_names)
