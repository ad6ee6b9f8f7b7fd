"""Every endpoint, asked as openapi.json says and otherwise, by schemathesis."""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import schemathesis
from flask import Flask
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

__all__ = ["CREDENTIALS", "DESCRIPTION", "answer_all"]

DESCRIPTION = Path(__file__).resolve().parents[2] / "ml_backend" / "api" / "openapi.json"
CREDENTIALS = ("ann", "a password")
_CHECKS = [
    status_code_conformance,  # 500 is in no description
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    ignored_auth,
]
"""Not those that ask for 400 wherever a body is not as described: of it we read what we need."""


def answer_all(app: Flask, examples: int, seed: int) -> Counter[tuple[str, int]]:
    """Send ``examples`` requests as described to each operation, and as many that are not, and
    check each answer. How often each status was answered, by method and path.

    Raises what schemathesis raises of an answer that is not described.
    """
    schema = schemathesis.openapi.from_dict(json.loads(DESCRIPTION.read_text()))
    schema.app = app
    answers: Counter[tuple[str, int]] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in GenerationMode.POSITIVE, GenerationMode.NEGATIVE:
            if mode is GenerationMode.POSITIVE or operation.body or any(_parameters(operation)):
                _answer(operation, mode, examples, seed, answers)
    return answers


def _parameters(operation: Any) -> list[Any]:
    return [one for one in operation.iter_parameters() if one.location != "path"]


def _answer(
    operation: Any, mode: GenerationMode, examples: int, seed: int, answers: Counter[Any]
) -> None:
    plain = base64.b64encode(":".join(CREDENTIALS).encode()).decode()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(case=operation.as_strategy(mode))
    def ask(case: Any) -> None:
        headers = {"Authorization": f"Basic {plain}"}
        answer = case.call_and_validate(headers=headers, checks=_CHECKS)
        answers[operation.label, answer.status_code] += 1

    ask()
