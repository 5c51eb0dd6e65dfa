"""The page in a real browser: wide and on a phone, light and dark."""

from __future__ import annotations

import html
import json
import math
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxopt.report.html import to_html
from onnxopt.report.report import (
    Cause,
    FileInfo,
    LayerNoise,
    OutputQuality,
    Remedy,
    Report,
    StepReport,
    TargetResult,
    Validation,
)

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser to look with: none of {', '.join(BROWSERS)}")

WIDTHS = {"wide": 1000, "phone": 360}
HEIGHT = 7400
LIGHT = {"good": (21, 127, 74), "bad": (192, 47, 58), "mind": (150, 100, 10), "blue": (47, 111, 222)}
LIGHT |= {"card": (255, 255, 255)}
DARK = {"good": (76, 195, 138), "bad": (255, 123, 132), "mind": (229, 180, 84), "blue": (107, 161, 255)}
DARK |= {"card": (26, 32, 41)}
# Both widths beside each other, and below what is where in them.
FRAMES = """<!DOCTYPE html><meta charset="utf-8"><body style="margin:0;display:flex">{frames}<pre id="found"></pre>
<script>
onload = () => {{
  const found = {{}};
  for (const frame of document.querySelectorAll("iframe")) {{
    const page = frame.contentDocument.documentElement, boxes = {{}};
    for (const part of page.querySelectorAll("header, section, h4, table, svg.plot, .command")) {{
      const box = part.getBoundingClientRect();
      const name = part.matches("section, h4") ? (part.querySelector("h2") || part).textContent : part.localName;
      boxes[name] = [box.left, box.top, box.right, box.bottom].map(Math.round);
    }}
    found[frame.id] = {{ across: page.scrollWidth, down: page.scrollHeight, boxes: boxes }};
  }}
  document.getElementById("found").textContent = JSON.stringify(found);
}};
</script>"""

LAYERS = [f"/blocks/blocks.{i}/Conv" for i in range(21)] + ["/a_layer_with_quite_a_long_name" * 4]
SATURATION = Cause("16-bit saturation", "pairs of products overflow", (Remedy("quantize for avx2", "0.3 dB"),))
FIGURES = {
    "channels": {name: [64, 48] for name in LAYERS[:4]},
    "curve": [[0.0, 0.0], [0.1, 0.002], [0.25, 0.01]],
    "groups": [{"makers": LAYERS, "readers": LAYERS[:2], "channels": 64, "classes": 64, "kept": 48, "why": "x " * 40}],
    "repaired": [{"layer": name, "before": 0.1 + i / 50, "after": i / 100} for i, name in enumerate(LAYERS)],
    "trials": [[0, 0.0, 30.0], [2, 0.2, 35.0], [3, 0.25, 34.0], [4, 0.3, 41.0]],
    "left_float": [{"layer": name, "op": "Conv", "sqnr_db": 40.0 + i, "lost_ms": 0.1} for i, name in enumerate("ab")],
}
TARGETS = (
    TargetResult("x86-64-avx2", "masked", "failed", "68.1 % agree", 500, 12.3, causes=(SATURATION,), departure="b"),
    TargetResult("arm64-cortex-a53", "emulated", "passed", "", 500, 28.4, 28.4, 0.9, 0.9, parity_db=math.inf),
    TargetResult("ssh://somebody@a-device-with-a-long-name.example", "ssh", "not checked", "no route " * 20),
)
PARTS = {
    *(
        "header",
        "Before and after",
        "Targets",
        "Gates",
        "Notes",
        "Original and result",
        "Layers",
        "Passes",
        "How to reproduce",
    ),
    *("Where and with what", "Channels kept", "Predicted error by MACs saved", "What was tried: quality against time"),
    "Relative error of each layer, before and after its repair",
    "What integers would do to each layer that stays float",
}


@dataclass(frozen=True)
class Looks:
    """Pictures by theme; what lies where, by width."""

    light: Image.Image
    dark: Image.Image
    found: dict[str, Any]


def browse(folder: Path, page: Path, *flags: str) -> str:
    """What a browser prints. It has a profile of its own, and no network to reach."""
    own = ["--headless", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1", "--no-first-run"]
    own += [f"--user-data-dir={folder / 'profile'}", f"--window-size={sum(WIDTHS.values())},{HEIGHT}"]
    own += ["--no-sandbox"] if os.geteuid() == 0 else []  # root has no sandbox
    command = [str(BROWSER), *own, "--host-resolver-rules=MAP * ~NOTFOUND", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=folder).stdout


@pytest.fixture(scope="module")
def report(report: Report, validation: Validation) -> Report:
    long, other = OutputQuality("a" * 120, 28.4, 0.999, 0.1), OutputQuality("other", math.inf, 1.0, math.nan, 0.99)
    prune = StepReport("prune:exclude=" + "very_long_name_" * 9, 1.5, 7, tuple((n, "why") for n in LAYERS), FIGURES)
    return replace(
        report,
        machine={"cpu": "one", "flags": "a" * 150},
        passes=(prune,),
        notes=("a note " * 30, "n" * 150),
        input=FileInfo("folder/" + "a" * 120 + ".onnx", "0a0b" * 16, 1000, 250, 4000),
        output=FileInfo("b.onnx", "1c1d" * 16, 300, 200, 1000),
        validation=(replace(validation, outputs=(long, other)),),
        targets=TARGETS,
        layers=tuple(LayerNoise(f"tensor{i}", 30.0 + i) for i in range(3)),
        reproduce=("onnxopt optimize model.onnx --passes prune --data " + "c" * 150,),
    )


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory, report: Report) -> Looks:
    folder = tmp_path_factory.mktemp("page")
    held = html.escape(to_html(report))
    frames = "".join(
        f'<iframe id="{name}" style="border:0;flex:none;width:{width}px;height:{HEIGHT}px" srcdoc="{held}"></iframe>'
        for name, width in WIDTHS.items()
    )
    page = folder / "frames.html"
    page.write_text(FRAMES.format(frames=frames), encoding="utf-8")
    browse(folder, page, f"--screenshot={folder / 'light.png'}", "--blink-settings=preferredColorScheme=1")
    browse(folder, page, f"--screenshot={folder / 'dark.png'}", "--blink-settings=preferredColorScheme=0")
    document = re.search(r'<pre id="found">(.*?)</pre>', browse(folder, page, "--dump-dom"), re.DOTALL)
    assert document is not None
    pictures = [Image.open(folder / f"{name}.png").convert("RGB") for name in ("light", "dark")]
    return Looks(*pictures, json.loads(html.unescape(document[1])))


def view(picture: Image.Image, name: str) -> Image.Image:
    left = 0 if name == "wide" else WIDTHS["wide"]
    return picture.crop((left, 0, left + WIDTHS[name], HEIGHT))


def count(picture: Image.Image, colour: tuple[int, ...]) -> int:
    return int((np.asarray(picture) == colour).all(axis=-1).sum())


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_its_screen(looks: Looks, width: str) -> None:
    assert looks.found[width]["across"] == WIDTHS[width]
    assert looks.found[width]["down"] <= HEIGHT  # all of it is in the pictures


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_part_is_drawn(looks: Looks, width: str, theme: str) -> None:
    picture, boxes = view(getattr(looks, theme), width), looks.found[width]["boxes"]
    assert set(boxes) >= PARTS
    for part in PARTS:
        left, top, right, bottom = boxes[part]
        assert 0 <= left < right <= WIDTHS[width]
        darkest, lightest = picture.crop((left, top, right, bottom)).convert("L").getextrema()
        assert lightest - darkest > 80, part


@pytest.mark.parametrize(("theme", "colours"), [("light", LIGHT), ("dark", DARK)])
@pytest.mark.parametrize("width", WIDTHS)
def test_colours_say_what_the_words_say(looks: Looks, width: str, theme: str, colours: dict[str, Any]) -> None:
    picture, boxes = view(getattr(looks, theme), width), looks.found[width]["boxes"]
    back = (246, 247, 249) if theme == "light" else (18, 22, 29)
    assert picture.getpixel((2, 2)) == back
    verdict = picture.crop(tuple(boxes["header"]))
    assert count(verdict, colours["good"]) > 100
    assert count(verdict, colours["card"]) > 10_000  # tiles
    bars = picture.crop(tuple(boxes["Before and after"]))
    assert count(bars, colours["blue"]) > 2000
    targets = picture.crop(tuple(boxes["Targets"]))
    for status in ("good", "bad", "mind"):
        assert count(targets, colours[status]) > 15, status
    tried = boxes["What was tried: quality against time"]
    plot = picture.crop((0, tried[1], WIDTHS[width], tried[1] + 280))
    assert count(plot, colours["good"]) > 60  # the one that was chosen
    assert count(plot, colours["blue"]) > 30


def test_what_comes_first(looks: Looks) -> None:
    boxes = looks.found["phone"]["boxes"]
    order = sorted(PARTS & set(boxes), key=lambda part: boxes[part][1])
    assert order[:4] == ["header", "Before and after", "Targets", "Gates"]
    assert order[-2:] == ["How to reproduce", "Where and with what"]
