"""Build the wheel and look inside: every module, pass and template, the lock, the type marker, and nothing else."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Exit with a message when the wheel is not what it should be."""
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, str(ROOT)]
        subprocess.run(build, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    engine = {str(p.relative_to(ROOT)) for p in (ROOT / "onnxopt").rglob("*.py")}
    passes = {f"onnxopt/passes/{p.name}" for p in (ROOT / "passes").glob("*.py")}
    templates = {str(p.relative_to(ROOT)) for p in (ROOT / "onnxopt").rglob("*.jinja2")}
    data = {"onnxopt/py.typed", "onnxopt/environments/lock.json", "onnxopt/targets/count.c"}
    expected = engine | passes | templates | data
    if held != expected:
        sys.exit(f"the wheel lacks {sorted(expected - held)} and has too much in {sorted(held - expected)}")
    print(f"wheel: {len(held)} files, as they should be")


if __name__ == "__main__":
    main()
