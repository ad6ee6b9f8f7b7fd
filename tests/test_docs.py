"""What the documentation says of settings, commands and addresses is what the code does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from ml_backend.rounds.schedule import LOCKS
from ml_backend.settings import Settings
from ml_backend.volumes.formats.format import Format
from ml_backend.volumes.formats.registry import formats, written_endings

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"])


def variables() -> dict[str, str]:
    """Environment variable → field."""
    found = {}
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        shared = alias.choices[1] if alias is not None else f"NEXTSLICE_{name.upper()}"  # type: ignore[union-attr]
        found[str(shared)] = name
    return found


def test_every_setting_is_documented_with_its_description() -> None:
    table = (ROOT / "docs" / "operations.md").read_text()
    for variable, name in variables().items():
        description = Settings.model_fields[name].description
        assert description, f"{name} has no description"
        row = next((r for r in table.splitlines() if r.startswith(f"| `{variable}`")), None)
        assert row is not None, f"docs/operations.md lacks {variable}"
        assert description in row


OTHERS = {
    "NEXTSLICE_CONFIG",
    "NEXTSLICE_HOME",
    "NEXTSLICE_REQUIRE_BROWSER",
    "NEXTSLICE_SCREENSHOTS",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_variable_named_in_the_docs_exists(page: Path) -> None:
    known = set(variables()) | {f"NEXTSLICE_{n.upper()}" for n in Settings.model_fields} | OTHERS
    named = set(re.findall(r"\bNEXTSLICE_[A-Z_]*[A-Z]\b", page.read_text()))
    assert named <= known, f"{page.name} names {sorted(named - known)}"


def nextslice() -> Any:
    """The command with all of its own."""
    from ml_backend import cli

    cli.load_commands()
    return typer.main.get_command(cli.app)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_named_in_the_docs_exists(page: Path) -> None:
    named = set(re.findall(r"`nextslice ([a-z]+)", page.read_text()))
    known = set(nextslice().commands)
    assert named <= known, f"{page.name} names {sorted(named - known)}"


def options_named(text: str) -> Iterator[tuple[str, Any, str]]:
    """What calls `nextslice` in ``text``, the command that is called, and an option given to it."""
    joined = re.sub(r"\\\n\s*", " ", text)
    for call in re.findall(r"\bnextslice [a-z][^`\n|;&#]*", joined):
        command, (_, *words) = nextslice(), call.split()
        if words[0] not in command.commands:  # a user or a folder of that name
            continue
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        sentence = re.split(r"\.\s", " ".join(words))[0]
        for option in re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", sentence):
            yield call, command, option


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_option_of_a_command_in_the_docs_exists(page: Path) -> None:
    for call, command, option in options_named(page.read_text()):
        known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        assert option in known | {"-h", "--help"}, f"{page.name}: {call}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_in_the_docs_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_lock_in_redis_is_documented_with_its_seconds() -> None:
    rows = re.findall(r"^  \| `([a-z-]+)` \|.*?\| ([0-9.]+) s \|", text_of("locks"), re.M)
    assert {name: float(seconds) for name, seconds in rows} == LOCKS


FILE_LOCKS = {
    "cli/demo.py": "demo.lock",
    "durable.py": ".part",
    "embedded/label_studio.py": "install.lock",
    "experiment/files.py": "runs/<strategy>/seed-0/lock",
    "experiment/report.py": "runs/report.lock",
    "experiment/runner.py": "start/seed-0.lock",
    "volumes/partial.py": ".partial/lock",
    "volumes/staging.py": ".nextslice-lock",
}
"""Module that locks a file → what the file is called."""


def test_every_lock_of_a_file_is_documented() -> None:
    package = ROOT / "ml_backend"
    lock = re.compile(r"(?<![\w.])(?:held|FileLock|flock|fcntl\.flock)\(")
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if lock.search(path.read_text())
    }
    assert found == set(FILE_LOCKS)
    rows = re.findall(r"^\| (`.*?) \|", text_of("locks"), re.M)
    for name in FILE_LOCKS.values():
        assert any(name in row for row in rows), f"docs/locks.md lacks {name}"


def text_of(page: str) -> str:
    return (ROOT / "docs" / f"{page}.md").read_text()


def ours() -> list[Format]:
    """The formats that are part of this distribution."""
    return [one for one in formats() if one.read.__module__.startswith("ml_backend.")]


def text(page: str) -> str:
    """A page with its lines run together."""
    return " ".join((ROOT / "docs" / page).read_text().split())


def test_the_table_of_formats_is_that_of_their_declarations() -> None:
    page = (ROOT / "docs" / "import.md").read_text()
    table = page.partition("| format | as |\n|---|---|\n")[2].partition("\n\n")[0]
    assert table.splitlines() == [f"| {one.title} | {one.summary} |" for one in ours()]


TRIED = (
    "| format | variants seen | who wrote the file | voxel size | writes |\n|---|---|---|---|---|\n"
)


def test_the_table_of_what_was_tried_is_of_every_format() -> None:
    page = (ROOT / "docs" / "import.md").read_text()
    tables = [part.partition("\n\n")[0].splitlines() for part in page.split(TRIED)[1:]]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for t in tables for row in t]
    assert sorted(row[0] for row in rows) == sorted(one.title for one in ours())
    for one in ours():
        _, variants, writer, size, writes = next(row for row in rows if row[0] == one.title)
        assert variants
        assert writer
        assert writes.startswith("yes" if one.write else "no"), one.title
        if "voxel_size" in one.keeps:
            assert size.startswith("yes"), one.title


HELD_BY = {
    "tiff": "volume tiff_planes foreign_volumes formats bitstream",
    "hdf5": "volume hdf5_elsewhere axes foreign_volumes formats",
    "ome-zarr": "volume axes foreign_volumes formats",
    "nifti": "volume directions axes foreign_volumes formats",
    "numpy": "volume pair formats",
    "png": "volume folder foreign_volumes formats",
    "raw": "volume formats",
    "jpeg2000": "skyscan",
    "ome-zarr-zip": "ome_zarr_zip",
}
"""Format → the tests that hold its row, where these are others than ``test_<name>.py``."""
LIBRARIES = {
    "tifffile": "tifffile", "Pillow": "PIL", "h5py": "h5py", "hdf5plugin": "hdf5plugin",
    "zarr": "zarr", "nibabel": "nibabel", "NumPy": "numpy", "pydicom": "pydicom",
    "mrcfile": "mrcfile", "pynrrd": "nrrd", "SimpleITK": "SimpleITK", "fabio": "fabio",
    "imagecodecs": "imagecodecs", "zipfile": "zipfile",
}  # fmt: skip
"""As the table calls what wrote a file → what a test imports."""


def test_each_row_of_what_was_tried_has_tests_with_files_of_that_library() -> None:
    page = (ROOT / "docs" / "import.md").read_text()
    rows = {
        cells[0].strip(): cells[2]
        for part in page.split(TRIED)[1:]
        for row in part.partition("\n\n")[0].splitlines()
        if (cells := row.strip("|").split("|"))
    }
    for one in ours():
        names = HELD_BY.get(one.name, one.name).split()
        tests = "".join((ROOT / "tests" / f"test_{name}.py").read_text() for name in names)
        assert "open_volume" in tests, one.title
        assert any(ending in tests for ending in (*one.endings, *one.images)), one.title
        for name, module in LIBRARIES.items():
            if re.search(rf"\b{name}\b", rows[one.title]):
                assert re.search(rf"\b(?:import|from) {module}\b", tests), f"{one.title}: {name}"


def test_the_formats_of_exported_masks_are_those_that_offer_them() -> None:
    masks = {one.name: one.masks for one in ours() if one.masks is not None}
    names = ", ".join(f"`{name}`" for name in masks)
    assert f"of the masks: {names}, and those of [plugins](plugins.md) |" in text("export.md")
    first, *others = (ending for ending in masks.values() if ending)
    listed = ", ".join(f"`{ending}`" for ending in others)
    assert f"`masks/<volume>-<axis>{first}` ({listed})" in text("export.md")


def test_the_endings_of_segmented_volumes_are_those_that_are_written() -> None:
    known = [ending for one in ours() for ending in one.endings]
    endings = ", ".join(f"`{ending}`" for ending in written_endings() if ending in known)
    assert f"says the format: {endings}, or a name without an ending" in text("segment.md")
