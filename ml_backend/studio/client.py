"""Label Studio as nextslice calls it: the SDK, with what it returns checked at the edge.

`Studio` is the only place that talks to Label Studio's API. Requests that the SDK's typed client
cannot express (Data Manager filters over pages of tasks) go through the SDK's own HTTP client. All
of them show the token of `StudioToken`, which renews itself.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import islice
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
from label_studio_sdk.core.api_error import ApiError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ml_backend.studio.download import DOWNLOAD_S, Downloads, ImageHosts
from ml_backend.studio.failures import ImageUnavailable, NoToken, StudioError
from ml_backend.studio.token import StudioToken

__all__ = [
    "Backend",
    "Draft",
    "Filter",
    "Project",
    "Studio",
    "StudioError",
    "TaskRow",
    "User",
    "Webhook",
    "annotated",
    "answered",
    "changed_since",
    "drafted",
    "ids_after",
    "ids_between",
    "ids_in",
    "not_annotated",
    "not_drafted",
    "not_skipped",
    "skipped",
    "submitted_since",
    "uncounted",
    "untouched",
    "with_version",
]

TASK_PAGE = 500
"""Tasks per page without annotations: a few hundred bytes each."""
ANNOTATED_PAGE = 20
"""Tasks per page with annotations: a noisy 2048² brush mask is megabytes."""
_IDS_PER_REQUEST = 200
"""Ids travel in the address, which proxies cut at 8 kB."""

_MOST_SAID = 2000
"""Characters of an answer that an error shows."""
_NAMED = 8
"""Projects that one names."""

Filter = dict[str, Any]


class Project(BaseModel):
    """What we read of a project. ``key`` names it in /setup, /predict and the store."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    id: int
    title: str = ""
    created_at: datetime
    label_config: str = ""
    model_version: str | None = None
    sampling: str | None = None
    show_collab_predictions: bool | None = None
    maximum_annotations: int | None = None
    """How many a task is to get; with more than one, some of the tasks may be to get one."""
    skip_queue: str | None = None
    """To whom a skipped task goes; ``IGNORE_SKIPPED``: to nobody."""

    @property
    def key(self) -> str:
        """``<id>.<created timestamp>``, as Label Studio writes it: an id alone is not unique."""
        return f"{self.id}.{int(self.created_at.timestamp())}"


class Backend(BaseModel):
    """An ML backend registered in a project. ``model_version``: what it answered Label Studio last,
    and it is asked whenever the backends are listed."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    id: int
    url: str
    title: str | None = None
    model_version: str | None = None
    basic_auth_user: str | None = None
    state: str | None = None
    """``CO``: it answers Label Studio; ``ER``: it does not, as ``error_message`` says."""
    error_message: str | None = None
    is_interactive: bool = False
    """Whether Label Studio asks it for a prediction when a person draws a prompt."""
    extra_params: Any = None
    """What a person gave it under *Settings → Model*: JSON, or a text that should be some."""


class Webhook(BaseModel):
    """A webhook of a project: what Label Studio calls after each submission."""

    model_config = ConfigDict(extra="ignore")

    id: int
    url: str
    is_active: bool = True
    headers: dict[str, str] | None = None


class TaskRow(BaseModel):
    """A task as the Data Manager lists it, without its annotations."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    id: int
    data: dict[str, Any]
    updated_at: datetime
    is_labeled: bool = False
    total_annotations: int = 0
    cancelled_annotations: int = 0
    annotators: list[int] = Field(default_factory=list)
    """Who has submitted it, and ``completed_at``, when last: told where `submitted_since` asks."""
    completed_at: datetime | None = None


class User(BaseModel):
    """A person of the organisation."""

    model_config = ConfigDict(extra="ignore")

    id: int
    email: str = ""
    first_name: str = ""
    last_name: str = ""

    @property
    def name(self) -> str:
        """As Label Studio shows them: by name where they gave one, else by email."""
        return f"{self.first_name} {self.last_name}".strip() or self.email or f"user {self.id}"


class Draft(BaseModel):
    """What somebody has begun and not submitted. ``user``: their email."""

    model_config = ConfigDict(extra="ignore")

    user: str
    updated_at: datetime


@dataclass(frozen=True)
class _Page:
    total: int
    total_annotations: int
    tasks: list[dict[str, Any]]


def _condition(field: str, operator: str, kind: str, value: Any) -> Filter:
    return {"filter": f"filter:tasks:{field}", "operator": operator, "type": kind, "value": value}


def changed_since(moment: datetime) -> Filter:
    """Tasks touched at or after ``moment`` (annotating, skipping and predicting touch a task)."""
    return _since("updated_at", moment)


def submitted_since(moment: datetime) -> list[Filter]:
    """Tasks with an annotation that was submitted at or after ``moment``; they tell who did."""
    # The second lets all of them pass: the Data Manager tells of what is filtered by, not else.
    someone = _condition("annotators", "empty", "List", "False")
    return [_since("completed_at", moment), someone]


def _since(field: str, moment: datetime) -> Filter:
    # The Data Manager parses exactly this form; an offset instead of Z is a 500.
    text = moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return _condition(field, "greater_or_equal", "Datetime", text)


def ids_in(ids: Iterable[int]) -> Filter:
    """Tasks whose id is one of ``ids``."""
    return _condition("id", "in_list", "List", list(ids))


def ids_between(first: int, last: int) -> Filter:
    """Tasks with an id from ``first`` to ``last``, both included."""
    return _condition("id", "in", "Number", {"min": first, "max": last})


def ids_after(last: int) -> Filter:
    """Tasks with an id above ``last``."""
    return _condition("id", "greater", "Number", last)


def annotated() -> Filter:
    """Tasks with an annotation that is not a skip."""
    return _condition("total_annotations", "greater", "Number", 0)


def not_annotated() -> Filter:
    """Tasks without any annotation but skips."""
    return _condition("total_annotations", "equal", "Number", 0)


def answered() -> Filter:
    """Tasks with an annotation or a skip, whatever Label Studio has counted."""
    return _condition("annotations_ids", "greater", "Number", 0)


def uncounted() -> list[Filter]:
    """Tasks with an annotation or a skip of which Label Studio has counted none."""
    return [answered(), not_annotated(), not_skipped()]


def not_skipped() -> Filter:
    """Tasks that nobody skipped."""
    return _condition("cancelled_annotations", "equal", "Number", 0)


def skipped() -> Filter:
    """Tasks that somebody skipped."""
    return _condition("cancelled_annotations", "greater", "Number", 0)


def drafted() -> Filter:
    """Tasks on which somebody keeps an unsubmitted draft (postponed ones included)."""
    return _condition("draft_exists", "equal", "Boolean", "True")


def not_drafted() -> Filter:
    """Tasks on which nobody keeps an unsubmitted draft."""
    return _condition("draft_exists", "equal", "Boolean", "False")


def untouched() -> list[Filter]:
    """Tasks without an annotation, a skip or a draft, whatever Label Studio has counted."""
    # As a text, Label Studio compares ids with "" in a project without tasks: a 500.
    return [_condition("annotations_ids", "empty", "Number", "True"), not_drafted()]


def with_version(version: str) -> Filter:
    """Tasks with a stored prediction whose model version contains ``version``."""
    return _condition("predictions_model_versions", "contains", "List", [version])


def _said(body: Any) -> str:
    """What an answer says, in its own words: Label Studio wraps them up in JSON."""
    if isinstance(body, str):
        if "<html" in body.lower():  # an error page, not an answer
            return "a web page instead of an answer"
        try:
            body = json.loads(body)
        except (RecursionError, ValueError):
            return str(body)[:_MOST_SAID]
    parts: list[str] = []
    if isinstance(body, dict):
        known = {**body, **(body.get("validation_errors") or {})} if "detail" in body else body
        skipped = ("id", "status_code", "version", "exc_info", "validation_errors", "detail")
        parts = [str(body["detail"])] if body.get("detail") else []
        for name, value in known.items():
            if name not in skipped:
                texts = value if isinstance(value, list) else [value]
                plain = "; ".join(map(str, texts))
                parts.append(plain if name == "non_field_errors" else f"{name}: {plain}")
    text = " ".join(parts) or json.dumps(body, default=str, ensure_ascii=False)
    return text if len(text) <= _MOST_SAID else f"{text[:_MOST_SAID]} …"


class Studio:
    """One Label Studio server, with one token.

    ``url``: its address as this machine sees it. ``api_key``: a personal access token or a legacy
    token. ``image_hosts``: whom else images come from; ``download_s``: how long one may take.
    Raises NoToken without one, StudioError for a personal one that has expired.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        timeout_s: float = 60.0,
        image_hosts: ImageHosts | None = None,
        download_s: float = DOWNLOAD_S,
    ) -> None:
        if not api_key:
            raise NoToken(
                "LABEL_STUDIO_API_KEY is empty. Create a personal access token in Label Studio "
                "under Account & Settings and set it in nextslice's environment."
            )
        self.url = url.rstrip("/")
        token = StudioToken(self.url, api_key)
        self.downloads = Downloads(self.url, token, image_hosts or ImageHosts(), download_s)
        self._http = httpx.Client(auth=token, timeout=timeout_s, follow_redirects=True)

    @cached_property
    def sdk(self) -> Any:
        """Label Studio's own client, as it is generated from its description: what the SDK adds for
        notebooks imports pandas and a label interface, .7 s and 60 MB."""
        from label_studio_sdk.base_client import LabelStudioBase

        # What the SDK takes for a legacy token stands in no request: ours takes its place.
        return LabelStudioBase(
            base_url=self.url, api_key="unused", httpx_client=self._http,
            timeout=self._http.timeout.read,
        )  # fmt: skip

    @property
    def below(self) -> str:
        """The path that the server is under, as in https://lab.example/label-studio, or empty: it
        stands before every path that the server writes into task data, for browsers."""
        return urlsplit(self.url).path

    # -- plumbing

    def request(self, method: str, path: str, **kwargs: Any) -> Any:
        """One request through the SDK's client; StudioError tells what was refused."""
        try:
            answer = self.sdk._client_wrapper.httpx_client.request(path, method=method, **kwargs)
        except (httpx.HTTPError, ApiError) as error:
            raise self._failure(f"{method} {path}", error) from error
        if answer.status_code >= 400:
            refusal = ApiError(status_code=answer.status_code, body=answer.text)
            raise self._failure(f"{method} {path}", refusal)
        try:
            return answer.json() if answer.content else None
        except ValueError as error:
            raise StudioError(
                f"{self.url} answered {method} {path} with {answer.content[:60]!r}, expected JSON: "
                "is LABEL_STUDIO_URL the address of Label Studio?"
            ) from error

    def _failure(self, what: str, error: Exception) -> StudioError:
        failure = StudioError(self._explain(what, error))
        failure.status = error.status_code if isinstance(error, ApiError) else None
        return failure

    def _explain(self, what: str, error: Exception) -> str:
        if isinstance(error, ApiError):
            if error.status_code == 401:
                return (
                    f"Label Studio at {self.url} refused the token (401) on {what}. Legacy tokens "
                    "are off in new organisations: create a personal access token under Account & "
                    "Settings and set LABEL_STUDIO_API_KEY."
                )
            said = _said(error.body)
            return f"Label Studio at {self.url} answered {error.status_code} to {what}: {said}"
        return (
            f"Label Studio at {self.url} cannot be reached for {what} "
            f"({type(error).__name__}: {error}). Check LABEL_STUDIO_URL and that it is running."
        )

    def call(self, what: str, function: Any, *args: Any, **kwargs: Any) -> Any:
        """``function(*args, **kwargs)`` of the SDK, its errors explained as StudioError."""
        try:
            return function(*args, **kwargs)
        except (httpx.HTTPError, ApiError) as error:
            raise self._failure(what, error) from error

    # -- projects and backends

    def project(self, project_id: int) -> Project:
        """The project as it is now. Raises StudioError when it does not exist."""
        try:
            found = self.request("GET", f"api/projects/{project_id}/")
        except StudioError as error:
            if error.status != 404:
                raise
            gone = StudioError(
                f"Label Studio at {self.url} has no project {project_id}, or none that the token's "
                f"user may see. It has {self._named_projects()}."
            )
            gone.status = 404
            raise gone from None
        try:
            return Project.model_validate(found)
        except ValidationError as error:
            raise StudioError(f"Project {project_id} has an unexpected form: {error}") from error

    def _named_projects(self) -> str:
        """The first few, as ``7 (bone)``."""
        found = [f"{one.id} ({one.title})" for one in islice(self.projects(), _NAMED + 1)]
        more = ", …" if len(found) > _NAMED else ""
        return f"{', '.join(found[:_NAMED])}{more}" if found else "none at all"

    def projects(self, **query: Any) -> Iterator[Project]:
        """The projects that the token's user may see; ``query``: what Label Studio filters by."""
        # What we read and no more: else the tasks and annotations of each are counted too.
        fields = ",".join(Project.model_fields)
        page: int | None = 1
        while page is not None:
            # By number: "next" is an address as browsers see the server, maybe not as we do.
            parameters = {"filter": "all", "include": fields, "page_size": 100, "page": page}
            answer = self.request("GET", "api/projects/", params={**parameters, **query})
            try:
                found = [Project.model_validate(row) for row in answer["results"]]
                page = page + 1 if answer["next"] else None
            except (KeyError, TypeError, ValidationError) as error:
                raise StudioError(
                    f"The list of projects has an unexpected form: {error}"
                ) from error
            yield from found

    def update_project(self, project_id: int, **fields: Any) -> None:
        """Set ``fields`` of the project (PATCH)."""
        self.call(f"update project {project_id}", self.sdk.projects.update, project_id, **fields)

    def backends(self, project_id: int) -> list[Backend]:
        """The ML backends of the project. Label Studio asks each for /health and /setup first."""
        rows = self.request("GET", "api/ml/", params={"project": project_id})
        try:
            return [Backend.model_validate(row) for row in rows]
        except ValidationError as error:
            raise StudioError(f"The list of backends has an unexpected form: {error}") from error

    def find_backend(self, project_id: int, url: str) -> Backend | None:
        """The backend registered under ``url`` (compared without a trailing slash)."""
        wanted = url.rstrip("/")
        for backend in self.backends(project_id):
            if backend.url.rstrip("/") == wanted:
                return backend
        return None

    def webhooks(self, project_id: int, url: str) -> list[Webhook]:
        """The project's webhooks that point at ``url`` (compared without a trailing slash)."""
        rows = self.request("GET", "api/webhooks/", params={"project": project_id})
        try:
            found = [Webhook.model_validate(row) for row in rows]
        except ValidationError as error:
            raise StudioError(f"The list of webhooks has an unexpected form: {error}") from error
        return [hook for hook in found if hook.url.rstrip("/") == url.rstrip("/")]

    def set_webhook_header(self, project_id: int, url: str, header: str, value: str) -> bool:
        """Give the webhooks that point at ``url`` a secret header. True when one was found."""
        found = self.webhooks(project_id, url)
        for hook in found:
            headers = hook.headers or {}
            if headers.get(header) != value:
                self.request(
                    "PATCH",
                    f"api/webhooks/{hook.id}/",
                    json={"headers": {**headers, header: value}},
                )
        return bool(found)

    def set_webhook(self, project_id: int, url: str) -> None:
        """Have a webhook call ``url`` after every action: one that is off is set on, a missing one
        is made, as Label Studio makes it beside an ML backend."""
        found = self.webhooks(project_id, url)
        if not found:
            made = {"project": project_id, "url": url, "send_payload": True}
            self.request("POST", "api/webhooks/", json={**made, "send_for_all_actions": True})
        for hook in found:
            if not hook.is_active:
                self.request("PATCH", f"api/webhooks/{hook.id}/", json={"is_active": True})

    # -- tasks

    def _page(
        self,
        project_id: int,
        filters: Sequence[Filter],
        fields: str,
        page: int,
        size: int,
        ordering: str = "tasks:id",
    ) -> _Page:
        params: dict[str, Any] = {
            "project": project_id,
            "fields": fields,
            "page": page,
            "page_size": size,
            # As they are stored: else addresses of storages are those of browsers, on another host.
            "resolve_uri": "false",
        }
        query: dict[str, Any] = {"ordering": [ordering]}
        if filters:
            query["filters"] = {"conjunction": "and", "items": list(filters)}
        params["query"] = json.dumps(query)
        answer = self.request("GET", "api/tasks/", params=params)
        return _Page(answer["total"], answer["total_annotations"], answer["tasks"])

    def _pages(
        self, project_id: int, filters: Sequence[Filter], fields: str, size: int
    ) -> Iterator[dict[str, Any]]:
        """By id, each page from the last one's end on. By number, what leaves the filter meanwhile
        moves all rows behind it forward, and the first of the next page is never seen."""
        following = list(filters)
        while True:
            answer = self._page(project_id, following, fields, 1, size)
            yield from answer.tasks
            if not answer.tasks or len(answer.tasks) >= answer.total:
                return
            following = [*filters, ids_after(int(answer.tasks[-1]["id"]))]

    def tasks(self, project_id: int, filters: Sequence[Filter] = ()) -> Iterator[TaskRow]:
        """Tasks that meet every filter, by id, without their annotations."""
        for row in self._pages(project_id, filters, "task_only", TASK_PAGE):
            try:
                task = TaskRow.model_validate(row)
            except ValidationError as error:
                raise StudioError(f"A task has an unexpected form: {error}") from error
            yield task

    def tasks_by_id(
        self, project_id: int, ids: Iterable[int], filters: Sequence[Filter] = ()
    ) -> Iterator[TaskRow]:
        """Those of the tasks ``ids`` that exist and meet every filter."""
        rest = iter(ids)
        while batch := list(islice(rest, _IDS_PER_REQUEST)):
            yield from self.tasks(project_id, [ids_in(batch), *filters])

    def full_tasks(
        self, project_id: int, filters: Sequence[Filter] = ()
    ) -> Iterator[dict[str, Any]]:
        """The same with annotations, predictions and the token's user's own drafts, as JSON."""
        return self._pages(project_id, filters, "all", ANNOTATED_PAGE)

    def full_tasks_by_id(self, project_id: int, ids: Iterable[int]) -> Iterator[dict[str, Any]]:
        """Those of the tasks ``ids`` that exist, with what `full_tasks` tells."""
        rest = iter(ids)
        while batch := list(islice(rest, _IDS_PER_REQUEST)):
            yield from self.full_tasks(project_id, [ids_in(batch)])

    def count_tasks(self, project_id: int, filters: Sequence[Filter] = ()) -> int:
        """How many tasks meet every filter: one request, whatever the size of the project."""
        return self._page(project_id, filters, "task_only", 1, 1).total

    def totals(self, project_id: int) -> tuple[int, int]:
        """How many tasks and (not skipped) annotations the project has, in one request."""
        page = self._page(project_id, (), "task_only", 1, 1)
        return page.total, page.total_annotations

    def newest_task(self, project_id: int) -> int:
        """Id of the project's last task; 0 without any."""
        newest = self._page(project_id, (), "task_only", 1, 1, ordering="-tasks:id").tasks
        return int(newest[0]["id"]) if newest else 0

    def newest_change(self, project_id: int) -> datetime | None:
        """When a task was touched last, by Label Studio's clock; None without any."""
        newest = self._page(project_id, (), "task_only", 1, 1, ordering="-tasks:updated_at").tasks
        return TaskRow.model_validate(newest[0]).updated_at if newest else None

    def first_tasks(
        self, project_id: int, filters: Sequence[Filter], most: int, ordering: str = "tasks:id"
    ) -> tuple[list[TaskRow], int]:
        """The first ``most`` tasks that meet every filter, and how many do: one request."""
        page = self._page(project_id, filters, "task_only", 1, most, ordering)
        try:
            return [TaskRow.model_validate(row) for row in page.tasks], page.total
        except ValidationError as error:
            raise StudioError(f"A task has an unexpected form: {error}") from error

    # -- people

    def users(self) -> list[User]:
        """The people of the organisation."""
        rows = self.request("GET", "api/users/")
        try:
            return [User.model_validate(row) for row in rows]
        except (TypeError, ValidationError) as error:
            raise StudioError(f"The list of users has an unexpected form: {error}") from error

    def drafts(self, task_id: int) -> list[Draft]:
        """What people have begun of a task and not submitted; everybody's, with their regions, so
        it may be large."""
        rows = self.request("GET", f"api/tasks/{task_id}/drafts")
        try:
            return [Draft.model_validate(row) for row in rows]
        except (TypeError, ValidationError) as error:
            raise StudioError(f"A draft has an unexpected form: {error}") from error

    # -- predictions

    def import_predictions(self, project_id: int, predictions: list[dict[str, Any]]) -> int:
        """Store predictions (``task``, ``model_version``, ``score``, ``result``) in one request;
        how many Label Studio says that it stored."""
        path = f"api/projects/{project_id}/import/predictions"
        answer = self.request("POST", path, json=predictions)
        created = answer.get("created") if isinstance(answer, dict) else None
        return created if isinstance(created, int) else 0

    def draw_prediction(self, prediction_id: int, result: list[dict[str, Any]]) -> None:
        """Give a stored prediction other regions; its score and version stay. One that is gone
        stays so."""
        try:
            self.call(
                f"draw prediction {prediction_id}",
                lambda: self.sdk.predictions.update(id=prediction_id, result=result),
            )
        except StudioError as error:
            if error.status != 404:
                raise

    def delete_prediction(self, prediction_id: int) -> None:
        """Delete one prediction. One by one on purpose: deleting a whole version at once nulls
        the project's model version (see `task_order`)."""
        try:
            self.sdk.predictions.delete(id=prediction_id)
        except ApiError as error:
            if error.status_code != 404:
                raise StudioError(
                    self._explain(f"delete prediction {prediction_id}", error)
                ) from error

    # -- images

    def absolute(self, url: str, task_id: int) -> str:
        """The http(s) address behind a task's image value.

        Uploads and local files are paths on the server; cloud addresses (``s3://…``) go through
        the task's presign endpoint; http(s) is taken as it is.
        """
        scheme = urlsplit(url).scheme
        if scheme in ("http", "https"):
            return url
        if scheme:
            uri = base64.urlsafe_b64encode(url.encode()).decode()
            return f"{self.url}/tasks/{task_id}/presign/?fileuri={uri}"
        path = url.removeprefix(f"{self.below}/") if self.below else url
        return urljoin(self.url + "/", path.lstrip("/"))

    def download(self, url: str, task_id: int, within_s: float | None = None) -> bytes:
        """The bytes of a task's image, from Label Studio, its storages and the named hosts alone.

        ``within_s``: in less time than usual. Raises ImageUnavailable when they may be there in a
        moment, StudioError otherwise (`Downloads.image`).
        """
        address = url
        try:
            address = self.absolute(url, task_id)
            return self.downloads.image(httpx.URL(address), within_s)
        except (StudioError, httpx.InvalidURL, ValueError) as error:  # ValueError: of no address
            kind = ImageUnavailable if isinstance(error, ImageUnavailable) else StudioError
            raise kind(
                f"The image of task {task_id} at {address} cannot be fetched: {error}"
            ) from error
