"""What ``make docs`` adds to the pages in docs/: hooks of MkDocs, named in mkdocs.yml.

README.md becomes the first page; CONTRIBUTING.md and CHANGELOG.md come along; ``commands.md`` is
made from the commands themselves. Links to files outside the site become their names in code,
since the site stands alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
}
LINK = re.compile(r"\[([^\]]*)\]\(([^)#:\s]+)(#[^)]*)?\)")


def commands() -> str:
    """The page of all commands, from what ``--help`` shows."""
    import typer
    from typer.cli import get_docs_for_click

    from ml_backend import cli

    cli.load_commands()
    command = typer.main.get_command(cli.app)
    context = typer.Context(command, info_name="nextslice")
    return get_docs_for_click(obj=command, ctx=context, name="nextslice", title="Commands")


def linked(text: str, folder: Path) -> str:
    """``text`` of a page in ``folder``, its links as the site has them."""

    def one(match: re.Match[str]) -> str:
        label, target, anchor = match.group(1), match.group(2), match.group(3) or ""
        path = (folder / target).resolve()
        if not path.exists():
            return match.group(0)  # MkDocs says which
        name = path.relative_to(ROOT).as_posix()
        if name in PAGES:
            return f"[{label}]({PAGES[name]}{anchor})"
        if (
            name.startswith("docs/")
            and path.is_file()
            and not name.startswith(("docs/results/", "docs/scripts/"))
        ):
            return f"[{label}]({name.removeprefix('docs/')}{anchor})"
        return label if label.startswith("`") or label == name else f"{label} (`{name}`)"

    return LINK.sub(one, text)


def on_files(files: Files, *, config: Any) -> Files:
    for source, target in PAGES.items():
        files.append(
            File.generated(config, target, content=linked((ROOT / source).read_text(), ROOT))
        )
    files.append(File.generated(config, "commands.md", content=commands()))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    made = page.file.src_uri in {*PAGES.values(), "commands.md"}
    return markdown if made else linked(markdown, ROOT / "docs")
