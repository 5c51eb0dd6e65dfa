"""A program that wants more memory than it may have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from onnxopt.runtime import bounded


@pytest.mark.skipif(sys.platform != "linux", reason="limits on memory are kept to on Linux")
@pytest.mark.parametrize(("wants", "code"), [(1000, 0), (4_000_000_000, 1)])
def test_what_wants_more_fails(wants: int, code: int, tmp_path: Path) -> None:
    program = tmp_path / "p.py"
    program.write_text("import sys\nbytearray(int(sys.argv[1]))\nprint(sys.argv)\n")
    command = [sys.executable, "-I", bounded.__file__, "2000000000", str(program), str(wants)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code
    if code:
        assert "MemoryError" in done.stderr
    else:
        assert done.stdout.strip() == str([str(program), str(wants)])
