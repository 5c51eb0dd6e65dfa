"""The group of commands, and how any of them ends.

Exit codes: 0 good, 1 a gate failed or a pass broke the model (nothing saved), 2 wrong usage or bad input,
3 a bug in onnxopt itself (``python -X dev -m onnxopt`` shows where), 4 a required target is not available,
130 interrupted, 143 terminated.
"""

from __future__ import annotations

import io
import signal
import sys
from types import FrameType

import click

from onnxopt import __version__
from onnxopt.cli.audit import audit
from onnxopt.cli.check import check
from onnxopt.cli.diff import diff
from onnxopt.cli.inspect import inspect
from onnxopt.cli.optimize import optimize
from onnxopt.cli.passes import passes
from onnxopt.cli.sensitivity import sensitivity
from onnxopt.cli.targets import targets
from onnxopt.cli.validate import validate
from onnxopt.errors import OnnxOptError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, package_name="onnxopt")
def commands() -> None:
    """Make an ONNX model smaller and faster without breaking it, and prove it.

    \b
    onnxopt optimize model.onnx --passes quant,prune --data calib.npz
    onnxopt validate model.onnx model.opt.onnx --data test.npz
    onnxopt check model.onnx --policy edge.toml
    onnxopt diff model.onnx model.opt.onnx
    onnxopt inspect model.onnx
    onnxopt audit model.onnx
    onnxopt sensitivity model.onnx --data calib.npz
    onnxopt passes
    onnxopt targets list
    """


for command in (optimize, validate, check, diff, inspect, audit, sensitivity, passes, targets):
    commands.add_command(command)


def main() -> None:
    """Run the command line and leave with its exit code; a user's mistake is one line on stderr."""
    signal.signal(signal.SIGTERM, _terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may hold what the encoding cannot say
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = commands.main(standalone_mode=False)
    except OnnxOptError as error:
        _complain(str(error), error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted: nothing was written", 130)
    except MemoryError:
        _complain("out of memory: use fewer --samples, or a machine with more", 2)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _complain(f"{place}{error.strerror or error}; free some space there, or see who may use it", 2)
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        _complain(f"a bug in onnxopt ({type(error).__name__}: {error}); please report it with the command", 3)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _terminate(_: int, __: FrameType | None) -> None:
    """End as an error does, so that what is half done is cleared away."""
    raise SystemExit(128 + signal.SIGTERM)


def _complain(message: str, code: int) -> None:
    click.echo("error: " + " ".join(message.split()), err=True)
    sys.exit(code)
