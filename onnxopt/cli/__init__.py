"""The command line: parse, call, print, exit code. It holds no logic of its own."""

from onnxopt.cli.main import main

__all__ = ["main"]
