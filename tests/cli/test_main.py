"""How the command line ends when something is wrong that is not the user's doing."""

import errno
import sys

import pytest

from onnxopt.__main__ import main as program
from onnxopt.cli import optimize as module


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "error: interrupted: nothing was written"),
        (MemoryError(), 2, "error: out of memory: use fewer --samples, or a machine with more"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/tmp/x"),
            2,
            "error: /tmp/x: No space left on device; free some space there, or see who may use it",
        ),
        (OSError("odd"), 2, "error: odd; free some space there, or see who may use it"),
        (
            ZeroDivisionError("a\nb"),
            3,
            "error: a bug in onnxopt (ZeroDivisionError: a b); please report it with the command",
        ),
    ],
)
def test_every_end_is_one_line(error: BaseException, code: int, message: str, net, run, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(module, "Output", fail)
    done = run("optimize", net, "--passes", "clean")
    assert (done.code, done.out, done.err.strip()) == (code, "", message)


def test_an_interrupt_while_it_is_loaded(monkeypatch, capsys) -> None:
    class Interrupted:
        @staticmethod
        def find_spec(*_: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "onnxopt.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupted])
    with pytest.raises(SystemExit) as end:
        program()
    assert end.value.code == 130
    assert capsys.readouterr() == ("", "error: interrupted: nothing was written\n")
