"""Put the screenshots that the tests left into docs/images, small: python -m tests.browser.keep"""

from __future__ import annotations

from PIL import Image

from tests.browser.conftest import ROOT, SCREENSHOTS

SHOWN = ("runs", "description", "report", "sweep", "moves")
COLOURS = 64
IMAGES = ROOT / "docs" / "images"

if __name__ == "__main__":
    for name in SHOWN:
        with Image.open(SCREENSHOTS / f"{name}.png") as picture:
            IMAGES.mkdir(parents=True, exist_ok=True)
            small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
            small.save(IMAGES / f"{name}.png", optimize=True)
