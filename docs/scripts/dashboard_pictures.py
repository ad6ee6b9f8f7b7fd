"""Take docs/images/dashboard.png and dashboard-project.png of a backend that runs.

python docs/scripts/dashboard_pictures.py http://127.0.0.1:9090 PROJECT [FOLDER]

Needs chromium on PATH. Those of the documentation are of
`nextslice demo --headless --rounds 2 --keep`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

SIZE = {"width": 1100, "height": 760}


def main(url: str, project: int, folder: Path) -> None:
    pages = {"dashboard": "/", "dashboard-project": f"/projects/{project}"}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for name, path in pages.items():
            page = browser.new_page(viewport=SIZE)
            page.set_default_timeout(120_000)
            page.goto(f"{url}{path}")
            for picture in page.locator(".queue img").all():
                picture.scroll_into_view_if_needed()
            page.wait_for_load_state("networkidle")
            page.evaluate("() => scrollTo(0, 0)")
            # The settings below have no need of a picture.
            below = page.locator("section[aria-labelledby=settings]")
            height = below.bounding_box()["y"] if below.count() else SIZE["height"]
            clip = {"x": 0, "y": 0, "width": SIZE["width"], "height": height}
            page.screenshot(path=folder / f"{name}.png", full_page=True, clip=clip)
        browser.close()


if __name__ == "__main__":
    default = Path(__file__).parents[1] / "images"
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else default)
