"""The address that browsers load slices from: does it answer, and is it us?"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import httpx

from ml_backend.health.finding import Finding
from ml_backend.settings import Settings, without_passwords

__all__ = ["public_url"]

_WAIT_S = 5.0
_OWN = ("localhost", "127.", "::1", "0.0.0.0")  # nosec B104  # compared, not bound


def public_url(settings: Settings) -> Finding:
    """What this machine can see of it. Whether another machine's browser reaches it, it cannot."""
    name, mend = "public address", "PUBLIC_URL"
    url = without_passwords(settings.slices_url)
    try:
        answer = httpx.get(f"{settings.slices_url.rstrip('/')}/health", timeout=_WAIT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = str(error) or type(error).__name__
        said = (
            f"Nothing answers at {url} ({why}), from which browsers load slices (PUBLIC_URL): they "
            "see none until the backend runs there (nextslice up)."
        )
        return Finding(name, "fault", said, mend)
    if answer.status_code != 401 and not _is_us(answer):
        said = (
            f"{url} answers {answer.status_code}, and not as nextslice does: browsers would ask "
            "another server for slices. Set PUBLIC_URL to the address of the backend."
        )
        return Finding(name, "fault", said, mend)
    if (urlsplit(settings.slices_url).hostname or "").startswith(_OWN):
        said = (
            f"{url} (PUBLIC_URL) answers. Browsers on this machine alone can load slices from it: "
            "for those of others, set PUBLIC_URL to an address that they reach."
        )
        return Finding(name, "good", said)
    said = (
        f"{url} (PUBLIC_URL) answers this machine. Whether it answers the browsers of those who "
        "annotate cannot be seen from here: open one slice there."
    )
    return Finding(name, "good", said)


def _is_us(answer: httpx.Response) -> bool:
    try:
        said: Any = answer.json()
    except ValueError:
        return False
    return isinstance(said, dict) and said.get("model_class") == "nextslice"
