"""The README's picture: the first screen of docs/example/report.html, light and dark.

In: the example report and a Chromium on the path. Out: docs/example/report-light.png and report-dark.png, of 64 colours
and with twice the pixels, so that text is sharp and files are small. Left out: making the report (`make demo`).
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

EXAMPLE = Path(__file__).resolve().parent / "example"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTH = 1000  # CSS pixels
LAST = ".entry[data-axis=privacy]"  # what the picture ends with


def main() -> None:
    chromium = next(filter(None, map(shutil.which, NAMES)))
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_page(
                viewport={"width": WIDTH, "height": 900}, color_scheme=scheme, device_scale_factor=2
            )
            page.goto((EXAMPLE / "report.html").as_uri())
            last = page.locator(LAST).bounding_box()
            assert last
            height = last["y"] + last["height"]
            taken = page.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": height}, full_page=True)
            picture = Image.open(io.BytesIO(taken)).convert("RGB").quantize(64)
            picture.save(EXAMPLE / f"report-{scheme}.png", optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
