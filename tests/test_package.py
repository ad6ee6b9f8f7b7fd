"""What is distributed: every file that the code reads, under one version."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import yaml

from ml_backend import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_file_of_the_packages_is_in_the_wheel() -> None:
    """Of the modules setuptools knows by itself; all else has to be named."""
    named = PROJECT["tool"]["setuptools"]["package-data"]
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *named],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    files = {name for name in tracked.stdout.split("\0") if name and not name.endswith(".py")}
    packed = {
        path.relative_to(ROOT).as_posix()
        for package, patterns in named.items()
        for pattern in patterns
        for path in (ROOT / package).glob(pattern)
    }
    assert len(files) > 4
    assert files - packed == set()


def test_every_folder_of_modules_is_a_package() -> None:
    """setuptools leaves out those without __init__.py."""
    for package in ("al_strategies", "ml_backend"):
        for module in (ROOT / package).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), module


def test_the_citation_names_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["project"]["license"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
