"""Pages of the demo's Label Studio ask no other host, and its server has nobody to report to."""

from __future__ import annotations

import re

import pytest

from ml_backend.embedded.label_studio import Session
from ml_backend.embedded.stack import Stack

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("page", ["/projects/", "/user/account", "/user/login/"])
def test_pages_load_nothing_from_other_hosts(stack: Stack, page: str) -> None:
    server = stack.label_studio
    session = Session(server.url, server.email, server.password)
    html = session.call("GET", page).text
    assert "<html" in html
    loaded = re.findall(
        r"""(?:<script|<link|<img|<iframe)[^>]*?(?:src|href)=["'](https?://[^"']+)""", html
    )
    assert [one for one in loaded if not one.startswith(server.url)] == []
    assert not re.search(r"sentry\.(io|cdn)|sentry-cdn", html)
