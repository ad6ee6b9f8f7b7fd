"""``make docs`` builds: every link and anchor leads somewhere, nothing is from another host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ml_backend import cli

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_of_the_docs_is_there(site: Path) -> None:
    pages = {page.with_suffix(".html").name for page in (ROOT / "docs").glob("*.md")}
    assert pages | {"index.html", "commands.html", "CONTRIBUTING.html"} <= {
        page.name for page in site.glob("*.html")
    }


def test_every_page_of_the_docs_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    assert {p.name for p in (ROOT / "docs").glob("*.md")} <= set(re.findall(r"- (\S+\.md)", nav))


def test_every_command_is_in_the_reference(site: Path) -> None:
    cli.load_commands()
    page = (site / "commands.html").read_text()
    for command in cli.app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__.strip("_")
        assert f"nextslice {name}</code>" in page


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    loaded = re.compile(
        r"<(?:script|img|iframe)[^>]+src=\"?(https?:)?//|<link[^>]+rel=\"?stylesheet\"?[^>]+href=\"?https?:"
    )
    foreign = [page.name for page in site.glob("*.html") if loaded.search(page.read_text())]
    assert not foreign


def test_links_out_of_the_site_are_names(site: Path) -> None:
    assert "<code>docker/README.md</code>" in (site / "setup.html").read_text()
    assert 'href="guide.html"' in (site / "index.html").read_text()
