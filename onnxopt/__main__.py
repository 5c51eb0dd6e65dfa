"""``python -m onnxopt``, and the program of that name."""

import sys


def main() -> None:
    """The command line. An interrupt while it is loaded ends it as one does later."""
    try:
        from onnxopt.cli import main as run

        run()
    except KeyboardInterrupt:
        print("error: interrupted: nothing was written", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
