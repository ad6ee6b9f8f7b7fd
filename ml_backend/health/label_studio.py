"""Label Studio: does it answer, does it let us in, what does it keep its data in."""

from __future__ import annotations

from typing import Any

import httpx

from ml_backend.errors import NextsliceError
from ml_backend.health.finding import Finding
from ml_backend.rounds.service import Service
from ml_backend.settings import without_passwords
from ml_backend.studio.database import database_kind

__all__ = ["answers", "database", "token"]

_WAIT_S = 5.0
_VERSION = "api/version/"


def answers(service: Service) -> Finding:
    """Whether Label Studio is at its address, and which version it is."""
    url = without_passwords(service.settings.label_studio_url)
    name, mend = "Label Studio", "LABEL_STUDIO_URL"
    try:
        address = f"{service.settings.label_studio_url.rstrip('/')}/{_VERSION}"
        answer = httpx.get(address, timeout=_WAIT_S, follow_redirects=True)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = str(error) or type(error).__name__
        return Finding(name, "fault", f"Nothing answers at {url} ({why}). Is it running?", mend)
    release = _release(answer)
    if release is None:
        said = f"{url} answers {answer.status_code}, and not as Label Studio does. Another address?"
        return Finding(name, "fault", said, mend)
    return Finding(name, "good", f"{release} answers at {url}.")


def _release(answer: httpx.Response) -> str | None:
    """The version that Label Studio says it is; None for another server."""
    try:
        said: Any = answer.json()
    except ValueError:
        return None
    return str(said["release"]) if isinstance(said, dict) and "release" in said else None


def token(service: Service) -> Finding:
    """Whether the API key is taken, and whose it is."""
    name, mend = "token", "LABEL_STUDIO_API_KEY"
    try:
        who = service.studio.request("GET", "api/current-user/whoami")
    except NextsliceError as error:
        return Finding(name, "fault", without_passwords(str(error)), mend)
    email = who.get("email") if isinstance(who, dict) else None
    return Finding(name, "good", f"Label Studio takes it for {email or 'a user without an email'}.")


def database(service: Service) -> Finding:
    """Whether Label Studio's database holds when several people annotate."""
    name = "database"
    try:
        kind = database_kind(service.studio)
    except NextsliceError as error:
        said = f"Which one Label Studio has is not known: {error}"
        return Finding(name, "unknown", without_passwords(said))
    if kind is None:
        said = (
            "Which one Label Studio has shows in how it searches tasks, and no project that this "
            "token may see has one. Look again when there are some."
        )
        return Finding(name, "unknown", said)
    if kind == "server":
        return Finding(name, "good", "Label Studio is on PostgreSQL, or another database server.")
    said = (
        "Label Studio searches as it does on SQLite. Under load that hands one slice to several "
        "people, and imports beside other writers lose annotations: more than one or two people "
        "need PostgreSQL, which it uses after DJANGO_DB=default with POSTGRE_HOST, POSTGRE_PORT, "
        "POSTGRE_NAME, POSTGRE_USER and POSTGRE_PASSWORD in its environment (docs/setup.md)."
    )
    return Finding(name, "warning", said, "DJANGO_DB=default")
