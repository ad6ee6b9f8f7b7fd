"""`nextslice config`: every setting that holds, and where it is written."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from pydantic import SecretStr

from ml_backend.cli import app
from ml_backend.configuration import Given, written
from ml_backend.settings import (
    Settings,
    given_settings,
    misspelt_settings,
    read_settings,
    variable_of,
    without_passwords,
)

__all__ = ["config"]


@app.command()
def config(
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output, for programs.")
    ] = False,
) -> None:
    """Show what every setting is, and where it is given. Secrets are masked.

    A setting is taken from the environment, else from .env or nextslice.toml of the working folder
    (or from the file that NEXTSLICE_CONFIG names instead of both), else it has its default.
    """
    settings, given, unknown = read_settings(), given_settings(), misspelt_settings()
    rows = [_row(name, settings, given.get(name)) for name in Settings.model_fields]
    if as_json:
        typer.echo(json.dumps({"settings": rows, "misspelt": unknown}))
        return
    values = [written(row["value"]) or "–" for row in rows]
    name_width = max(len(row["variable"]) for row in rows)
    value_width = max(len(value) for value in values if len(value) < 48)
    for row, value in zip(rows, values, strict=True):
        typer.echo(f"{row['variable']:{name_width}}  {value:{value_width}}  {row['from']}".rstrip())
    for said in unknown:
        typer.echo(f"nextslice: {said}", err=True)


def _row(name: str, settings: Settings, given: Given | None) -> dict[str, Any]:
    found = getattr(settings, name)
    if isinstance(found, SecretStr):
        value: Any = "***" if found.get_secret_value() else ""
    else:
        value = settings.model_dump(mode="json", include={name})[name]
    if isinstance(value, str):
        value = without_passwords(value)
    place = "default" if given is None else given.place
    variable = variable_of(name) if given is None else given.variable
    return {"variable": variable, "value": value, "from": place}
