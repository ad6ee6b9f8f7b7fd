"""Take docs/images/predicted-slice.png: the next slice of a project, as Label Studio opens it.

nextslice demo --headless --rounds 2 --keep
python docs/scripts/slice_picture.py http://127.0.0.1:8080 EMAIL PASSWORD PROJECT [FOLDER]

Needs chromium on PATH. The demo prints address and login.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

SIZE = {"width": 1280, "height": 800}


def main(url: str, email: str, password: str, project: int, folder: Path) -> None:
    path = folder / "predicted-slice.png"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport=SIZE)
        page.goto(f"{url}/user/login/")
        page.fill("input[name=email]", email)
        page.fill("input[name=password]", password)
        page.keyboard.press("Enter")
        page.wait_for_load_state("networkidle")
        page.goto(f"{url}/projects/{project}/data")
        page.get_by_text("Label All Tasks", exact=True).click()
        page.locator("canvas").first.wait_for()
        page.wait_for_timeout(5000)
        page.screenshot(path=path)
        browser.close()
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    default = Path(__file__).parents[1] / "images"
    url, email, password, project, *rest = sys.argv[1:]
    main(url, email, password, int(project), Path(rest[0]) if rest else default)
