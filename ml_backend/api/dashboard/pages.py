"""The pages, and what can be done on them: train now, settings, look at a slice."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from urllib.parse import urlsplit

from flask import (
    Blueprint,
    Flask,
    Request,
    Response,
    current_app,
    make_response,
    redirect,
    request,
    url_for,
)
from markupsafe import Markup, escape
from redis.exceptions import RedisError

from ml_backend.api.auth import refuse
from ml_backend.api.dashboard.answers import legend, message, page, stored, unknown
from ml_backend.api.dashboard.curve import learning_curve
from ml_backend.api.dashboard.forms import settings_form
from ml_backend.api.dashboard.thumbnails import NoSuchSlice, Picture, Thumbnails, uncertainty
from ml_backend.api.dashboard.volume_pages import serve_volumes, volumes
from ml_backend.api.protocol import health
from ml_backend.api.slices import refusal
from ml_backend.api.status import CANNOT_LOOK, looks
from ml_backend.errors import NextsliceError, OptionError, TryAgainLater
from ml_backend.logs import without_passwords
from ml_backend.rounds.extra_params import SOURCE
from ml_backend.rounds.overview import ProjectOverview
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.project_settings import change_settings
from ml_backend.rounds.service import Service
from ml_backend.settings import own_fields

__all__ = ["serve_dashboard"]

logger = logging.getLogger(__name__)

_EXTENSION = "nextslice thumbnails"
_SHOWN = 24
"""Places of the queue that are shown as pictures."""
_UNCERTAINTY = "uncertainty"

dashboard = Blueprint(
    "dashboard",
    __name__,
    template_folder="templates",
    static_folder="static",
    static_url_path="/dashboard",
)
dashboard.register_blueprint(volumes)


def serve_dashboard(app: Flask, service: Service) -> None:
    """Add the pages to ``app``, which has the looks of `api.status` already."""
    app.extensions[_EXTENSION] = Thumbnails(service)
    serve_volumes(app, service)
    app.register_blueprint(dashboard)


@dashboard.before_request
def _authorise() -> Response | None:
    refused = refuse(looks().service.settings, request)
    if refused is None and request.method == "POST" and not _of_this_page(request):
        said = "nextslice: this form was sent by a page of another site, and is not obeyed\n"
        return Response(said, 403, mimetype="text/plain")
    return refused


def _of_this_page(asked: Request) -> bool:
    """Whether a page of ours sends the form. Browsers add the password to what other sites send,
    too, and say who sends it; programs say nothing."""
    site = asked.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = asked.headers.get("Origin")
    try:
        return origin is None or urlsplit(origin).netloc == asked.host
    except ValueError:  # one that is no address, as http://[
        return False


@dashboard.after_request
def _guard(answer: Response) -> Response:
    """What a page of ours may load: its own files, and what it looks for at PUBLIC_URL."""
    parts = urlsplit(looks().service.settings.slices_url)
    public = f"{parts.scheme}://{parts.netloc}"
    answer.headers.setdefault(
        "Content-Security-Policy",
        f"default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
        f"connect-src 'self' {public}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    )
    answer.headers.setdefault("X-Content-Type-Options", "nosniff")
    answer.headers.setdefault("Referrer-Policy", "same-origin")
    return answer


@dashboard.get("/")
def root() -> Response | tuple[Response, int]:
    """The service, for a browser; for programs as /health."""
    if request.accept_mimetypes.best_match(["application/json", "text/html"]) != "text/html":
        return health()
    return page("service.html", status=looks().service_status())


@dashboard.get("/projects/<int:number>")
def project(number: int) -> Response | tuple[Response, int]:
    """One project."""
    return _project_page(number, done=request.args.get("done"))


@dashboard.get("/projects/<int:number>/train")
@dashboard.get("/projects/<int:number>/settings")
def form(number: int) -> Response:
    """A page that answered to a form, asked for by its address: as a bookmark, or once more."""
    return make_response(redirect(url_for("dashboard.project", number=number), 303))


@dashboard.post("/projects/<int:number>/train")
def train(number: int) -> Response | tuple[Response, int]:
    """Train now."""
    found = stored(number)
    if found is None:
        return unknown(number)
    try:
        found.schedule.start()
    except RedisError as error:
        said = without_passwords(f"Nothing was asked for: Redis does not answer ({error}).")
        return _project_page(number, wrong=said, code=503)
    return _back(found, "train")


@dashboard.post("/projects/<int:number>/settings")
def settings(number: int) -> Response | tuple[Response, int]:
    """Settings of the project's own; an emptied field takes one back."""
    found = stored(number)
    if found is None:
        return unknown(number)
    given = {name: request.form[name] for name in own_fields() if _changed(request.form, name)}
    try:
        change_settings(found, given)
    except OptionError as error:
        return _project_page(number, wrong=f"Nothing was changed. {error}", given=given, code=400)
    except CANNOT_LOOK as error:
        said = without_passwords(f"The settings cannot be kept: {error}")
        return _project_page(number, wrong=said, given=given, code=503)
    try:
        found.schedule.count()  # a smaller K may be reached, a pause be over
    except RedisError as error:  # they are kept, and the loop looks anyway: the page says the rest
        logger.warning("project %d is not looked at at once: Redis: %s", number, error)
    return _back(found, "settings")


def _changed(form: Mapping[str, str], name: str) -> bool:
    """Whether ``name`` is not as the page showed it when it was opened: the browser sends every
    field, and another page or a shell may have set it meanwhile. Programs do not say what was."""
    return name in form and form[name].strip() != form.get(f"was-{name}")


@dashboard.get("/projects/<int:number>/slices/<int:task>.png")
def picture(number: int, task: int) -> Response:
    """A slice of the project with the published mask, small; ``?show=uncertainty``: how uncertain
    the published network is of it."""
    thumbnails: Thumbnails = current_app.extensions[_EXTENSION]
    try:
        found = stored(number)
        if found is None:
            raise NoSuchSlice(f"project {number} is not known here")
        if request.args.get("show") == _UNCERTAINTY:
            with thumbnails.place():
                shown = Picture(uncertainty(found, task))
        else:
            shown = thumbnails.picture(found, task)
    except (NextsliceError, OSError) as error:
        status = 404 if isinstance(error, NoSuchSlice) else 503
        return refusal(error, status, without_passwords(str(error)))
    answer = Response(shown.png, mimetype="image/png")
    answer.headers["Cache-Control"] = f"private, {'max-age=300' if shown.lasting else 'no-cache'}"
    return answer


def _back(project: ConnectedProject, done: str) -> Response:
    looks().forget(project.key)
    to = url_for("dashboard.project", number=project.number, done=done)
    return make_response(redirect(to, 303))


def _not_now(error: Exception) -> tuple[Response, int]:
    """What keeps a page from being shown, or a form from being read."""
    number = (request.view_args or {}).get("number")
    says = without_passwords(str(error))
    logger.warning("%s: 503: %s", request.path, says)
    if request.method == "POST":
        says = f"Nothing was changed. {says}"
    title = "nextslice" if number is None else f"Project {number} cannot be shown"
    answer, code = message(title, says, 503)
    if isinstance(error, TryAgainLater):
        answer.headers["Retry-After"] = "2"
    return answer, code


for _fault in CANNOT_LOOK:
    dashboard.register_error_handler(_fault, _not_now)


def _what_was_done(done: str | None, found: ProjectOverview) -> str | None:
    if done == "settings":
        away = any(condition.state == "redis" for condition in found.conditions)
        follows = "Redis does not answer: a look at the project follows when it does."
        return f"The settings are kept. {follows if away else 'The next round goes by them.'}"
    if done != "train":
        return None
    begins = "It begins when a gpu worker is free."
    if found.unanswered:
        begins = "When it begins is not known: Label Studio did not tell the rest."
    elif found.paused:
        begins = "It begins when the project, which is paused, goes on."
    elif found.labels is not None and not found.labels.annotated:
        begins = "Nobody has labelled a slice yet: it begins with the first one."
    return f"A training is asked for. {begins}"


def _project_page(
    number: int,
    *,
    done: str | None = None,
    wrong: str | None = None,
    given: dict[str, str] | None = None,
    code: int = 200,
) -> Response | tuple[Response, int]:
    try:
        found = looks().project(number)
    except CANNOT_LOOK:
        if wrong is None:
            raise
        return message(f"Project {number}", wrong, code)
    if found is None:
        return unknown(number)
    fields = settings_form(found.settings)
    answer = page(
        "project.html",
        code=code,
        project=found,
        curve=learning_curve(found.rounds, found.classes),
        fields=fields,
        extra_params=SOURCE,
        given={field.name: field.own for field in fields} | (given or {}),
        shown=found.queue[:_SHOWN],
        uncertain=request.args.get("show") == _UNCERTAINTY,
        colours=legend(found.classes),
        done=_what_was_done(done, found),
        wrong=wrong,
    )
    return answer if wrong else _unless_known(answer)


def _unless_known(answer: Response) -> Response:
    """304 for who has this very page: of many rounds and classes it is large, and asked for again
    and again."""
    answer.headers["Cache-Control"] = "private, no-cache"
    answer.add_etag()
    answer.make_conditional(request)
    return answer


@dashboard.app_template_filter("ticked")
def _ticked(text: str) -> Markup:
    """What stands between two backticks as code."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else part
        for place, part in enumerate(parts)
    )


@dashboard.app_template_global("zone")
def _zone() -> str:
    """The zone of every moment on a page at this moment: ``UTC+09:00``."""
    return f"UTC{datetime.now().astimezone().isoformat()[-6:]}"


@dashboard.app_template_filter("slices")
def _slices(count: int) -> str:
    """``1 slice``, ``1,204 slices``."""
    return f"{count:,} {'slice' if count == 1 else 'slices'}"


@dashboard.app_template_filter("duration")
def _duration(seconds: float | None) -> str:
    """``45 s``, ``3 min``, ``2 h 5 min``."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


@dashboard.app_template_filter("day")
def _day(moment: str) -> str:
    """An ISO moment in local time, as those of the conditions, to the minute; empty stays so."""
    return f"{datetime.fromisoformat(moment).astimezone():%Y-%m-%d %H:%M}" if moment else ""
