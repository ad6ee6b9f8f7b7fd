"""The token that Label Studio is shown: renewed in time, and once more when it is refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ml_backend.rounds.artefacts import EVIDENCE
from ml_backend.rounds.round import run_round
from ml_backend.settings import Settings
from ml_backend.studio.client import Studio, StudioError
from ml_backend.studio.download import ImageHosts
from ml_backend.studio.images import decode_image
from tests.http_studio import (
    SLICES,
    HttpStudio,
    personal_token,
    phantom_project,
    phantom_server,
)


@pytest.fixture
def server() -> Iterator[HttpStudio]:
    with phantom_server() as running:
        yield running


@pytest.fixture
def studio(server: HttpStudio) -> Studio:
    return Studio(server.url, server.key)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that have passed since the test began."""
    seconds = [0.0]
    monkeypatch.setattr("ml_backend.studio.token._seconds", lambda: seconds[0])
    return seconds


def test_a_token_is_renewed_at_half_its_life(
    server: HttpStudio, studio: Studio, clock: list[float]
) -> None:
    studio.project(7)
    clock[0] = 149.0
    studio.project(7)
    assert server.renewals == 1

    clock[0] = 151.0
    studio.project(7)

    assert server.renewals == 2
    assert len(set(server.shown) - {None}) == 2


def test_a_renewal_that_fails_ahead_of_time_costs_nothing(
    server: HttpStudio, studio: Studio, clock: list[float]
) -> None:
    studio.project(7)
    server.renewable = False

    clock[0] = 299.0
    assert studio.project(7).id == 7

    clock[0] = 301.0
    with pytest.raises(StudioError, match=r"refused the token \(401\)"):
        studio.project(7)


@pytest.mark.parametrize("call", [
    lambda studio: studio.project(7),
    lambda studio: studio.update_project(7, sampling="Uncertainty sampling"),
    lambda studio: decode_image(studio.download("/3.png", 3), "3"),
], ids=["request", "the SDK's own", "download"])  # fmt: skip
def test_a_refused_request_is_made_once_more(
    server: HttpStudio, studio: Studio, call: Callable[[Studio], Any]
) -> None:
    studio.project(7)
    server.good.clear()

    call(studio)

    assert server.count(401) == 1
    assert server.renewals == 2


def test_only_a_second_refusal_says_that_the_token_is_bad(
    server: HttpStudio, studio: Studio
) -> None:
    server.lets_in = lambda header: False  # type: ignore[method-assign]
    with pytest.raises(StudioError, match=r"refused the token \(401\)"):
        studio.project(7)
    assert [seen for seen in server.seen if "refresh" not in seen[1]] == [
        ("GET", "/api/projects/7/", 401)
    ] * 2


def test_a_personal_token_that_is_refused_is_named(server: HttpStudio, studio: Studio) -> None:
    server.renewable = False
    with pytest.raises(StudioError, match=r"refused the token \(401\)"):
        studio.project(7)
    with pytest.raises(StudioError, match=r"image of task 3 .* 401"):
        studio.download("/3.png", 3)


def test_a_personal_token_that_has_expired_is_named() -> None:
    with pytest.raises(StudioError, match=r"LABEL_STUDIO_API_KEY .* expired at 20\d\d-"):
        Studio("http://ls", personal_token(expires_in_s=-60))


def test_threads_share_one_renewal(server: HttpStudio, studio: Studio) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert {p.id for p in pool.map(studio.project, [7] * 16)} == {7}
    assert server.renewals == 1


def test_another_origin_gets_neither_the_token_nor_a_second_request(
    server: HttpStudio,
) -> None:
    hosts = ImageHosts("127.0.0.1")
    studio = Studio(server.url, server.key, image_hosts=hosts)
    with phantom_server() as other:  # it refuses whoever it does not know
        server.moved = {"/3.png": f"{other.url}/3.png"}
        with pytest.raises(StudioError, match="401"):
            studio.download("/3.png", 3)
    assert other.shown == [None]
    assert server.renewals == 1


def test_the_personal_token_follows_no_redirect(server: HttpStudio, studio: Studio) -> None:
    with phantom_server() as other:
        server.moved = {"/api/token/refresh": f"{other.url}/api/token/refresh/"}
        with pytest.raises(StudioError, match=f"a redirect to {other.url}.*LABEL_STUDIO_URL"):
            studio.project(7)
    assert other.seen == []


def test_a_round_outlives_tokens_of_two_seconds(
    make_settings: Callable[..., Settings], redis_url: str
) -> None:
    """By a clock that is a minute ahead: the token is dead before it seems to be."""
    with phantom_server(life_s=2.0, ahead_s=60.0) as server:
        project = phantom_project(server, make_settings, REDIS_URL=redis_url)
        slow = iter([2.2])  # an image takes longer than a token lives

        def wait(path: str) -> None:
            if path == "/7.png":
                time.sleep(next(slow, 0))

        server.fault = wait

        record = run_round(project, "test")

    assert record is not None
    assert record.round == 1
    assert project.published == project.folder.published
    assert len(project.folder.round(1).need(EVIDENCE).ids) == SLICES
    assert server.renewals >= 2
