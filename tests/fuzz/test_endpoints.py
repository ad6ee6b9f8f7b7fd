"""What the backend answers is what its description says, whatever it is asked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from flask import Flask
from schemathesis.core.failures import FailureGroup

from ml_backend.app import create_app
from ml_backend.settings import Settings
from tests.fuzz.endpoints import CREDENTIALS, DESCRIPTION, answer_all


@pytest.fixture
def app(make_settings: Callable[..., Settings], redis_url: str) -> Flask:
    user, password = CREDENTIALS
    return create_app(
        make_settings(REDIS_URL=redis_url, BASIC_AUTH_USER=user, BASIC_AUTH_PASS=password)
    )


def described() -> set[tuple[str, str]]:
    paths = json.loads(DESCRIPTION.read_text())["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods}


def test_the_description_names_every_route_and_no_other(app: Flask) -> None:
    served = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert described() == served


def test_the_description_is_served_to_who_may_call(app: Flask) -> None:
    client = app.test_client()
    assert client.get("/openapi.json").status_code == 401
    answer = client.get("/openapi.json", auth=CREDENTIALS)
    assert answer.get_json() == json.loads(DESCRIPTION.read_text())


def test_every_answer_is_described(app: Flask) -> None:
    answers = answer_all(app, examples=12, seed=1)
    asked = {label for label, _ in answers}
    assert asked == {f"{method} {path}" for method, path in described()}
    assert {200, 400, 403} <= {status for _, status in answers}


def test_an_answer_that_is_not_described_is_noticed(app: Flask) -> None:
    app.view_functions["watching.ready"] = lambda: ("broken", 500)
    with pytest.raises(FailureGroup, match="Undocumented status code"):
        answer_all(app, examples=2, seed=1)
