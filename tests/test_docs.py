"""What the documentation says of settings, commands and addresses is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from ml_backend.settings import Settings

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


OTHERS = {"NEXTSLICE_HOME", "NEXTSLICE_REQUIRE_BROWSER", "NEXTSLICE_SCREENSHOTS"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_variable_named_in_the_docs_exists(page: Path) -> None:
    known = set(variables()) | {f"NEXTSLICE_{n.upper()}" for n in Settings.model_fields} | OTHERS
    named = set(re.findall(r"\bNEXTSLICE_[A-Z_]*[A-Z]\b", page.read_text()))
    assert named <= known, f"{page.name} names {sorted(named - known)}"


def commands() -> set[str]:
    from ml_backend import cli

    cli.load_commands()
    group = typer.main.get_command(cli.app)
    return set(group.commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_named_in_the_docs_exists(page: Path) -> None:
    named = set(re.findall(r"`nextslice ([a-z]+)", page.read_text()))
    assert named <= commands(), f"{page.name} names {sorted(named - commands())}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_in_the_docs_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
