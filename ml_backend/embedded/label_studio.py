"""A private Label Studio: installed in its own environment, on SQLite, with a token of its own."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from ml_backend.durable import held, write_whole
from ml_backend.embedded.processes import ProcessGroup, StartError, free_port
from ml_backend.studio.client import StudioError

__all__ = [
    "LABEL_STUDIO_VERSION",
    "LabelStudioServer",
    "Session",
    "find_label_studio",
    "install_label_studio",
    "label_studio_environment",
    "start_label_studio",
]

logger = logging.getLogger(__name__)

LABEL_STUDIO_VERSION = "1.23.2"
_CONSTRAINTS = Path(__file__).with_name("label_studio_constraints.txt")
_EMAIL = "demo@nextslice.local"
_PASSWORD = "nextslice-demo"  # nosec B105  # of the demo, which the command prints
_EMPTY = Path("empty", "label_studio.sqlite3")
_NOWHERE_ELSE = {
    # Uploads go into the folder too, and pages link to the address that they are asked at.
    "STORAGE_TYPE": "",
    "MINIO_STORAGE_ENDPOINT": "",
    "HOST": "",
    "COLLECT_ANALYTICS": "false",
    # Its own start-up check for a newer version would wait for a network that may not be there.
    "LATEST_VERSION_CHECK": "false",
    # Its pages load a script of Sentry's and report errors there, its server does too: addresses of
    # its makers, which analytics have no say in.
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
}
_OPEN_HERE = {
    # A server behind https has one host, and cookies that go back by https alone and that scripts
    # of its pages may not read. This one is asked at http://127.0.0.1.
    "ALLOWED_HOSTS": "*",
    "SESSION_COOKIE_SECURE": "0",
    "SESSION_COOKIE_SAMESITE": "Lax",
    "CSRF_COOKIE_SECURE": "0",
    "CSRF_COOKIE_HTTPONLY": "0",
    "CSRF_COOKIE_SAMESITE": "Lax",
    # Scripts and styles are its own; slices may come from nextslice, which is at another port.
    "FRONTEND_HOSTNAME": "",
    "LS_CSP_REPORT_ONLY": "true",
    "DISABLE_SIGNUP_WITHOUT_LINK": "false",
    # That of the lab's server would be the first user's here, too.
    "USER_TOKEN": "",  # nosec B105  # none
}


def _environment(home: Path) -> Path:
    return home / f"label-studio-{LABEL_STUDIO_VERSION}"


def label_studio_environment(
    folder: Path, database: Mapping[str, str] | None = None, **settings: str
) -> dict[str, str]:
    """The variables by which Label Studio keeps everything in ``folder``, or its tables in
    ``database``, lets people in at http://127.0.0.1, and has ``settings``, whatever the shell is
    set for.

    It looks for each setting as LABEL_STUDIO_X, then HEARTEX_X, then X: all are given by the name
    that wins. A shell on the machine of a lab's own server has that one's database and hosts in the
    others.
    """
    sqlite = {"DJANGO_DB": "sqlite", "DATABASE_NAME": str(folder / _EMPTY.name)}
    given = {
        "BASE_DATA_DIR": str(folder),
        **_NOWHERE_ELSE,
        **_OPEN_HERE,
        **settings,
        **(sqlite if database is None else database),
    }
    return {f"LABEL_STUDIO_{name}": value for name, value in given.items()}


def find_label_studio(home: Path) -> Path | None:
    """The ``label-studio`` command to use: LABEL_STUDIO_BIN, else the one installed in ``home``."""
    given = os.environ.get("LABEL_STUDIO_BIN")
    if given:
        if not Path(given).exists():
            raise StartError(f"LABEL_STUDIO_BIN is {given!r}, but there is no such file.")
        return Path(given).absolute()  # it is started in another folder
    environment = _environment(home)
    # The marker is written last: an installation that was interrupted is done again.
    if (environment / "installed").exists():
        return environment / "bin" / "label-studio"
    return None


def install_label_studio(home: Path) -> Path:
    """Install Label Studio into an environment of its own under ``home`` (a few minutes).

    An empty database is made with it: its hundreds of migrations take most of a first start.
    Returns its command; does nothing when it is there. StartError shows what was said.
    """
    with held(home / "install.lock"):  # two demos started at once
        found = find_label_studio(home)
        if found is not None:
            return found
        environment = _environment(home)
        shutil.rmtree(environment, ignore_errors=True)
        python = str(environment / "bin" / "python")
        _run(sys.executable, "-m", "venv", str(environment))
        _run(
            python, "-m", "pip", "install", "--disable-pip-version-check",
            f"label-studio=={LABEL_STUDIO_VERSION}", "--constraint", str(_CONSTRAINTS),
        )  # fmt: skip
        (manage,) = environment.glob("lib/python*/site-packages/label_studio/manage.py")
        empty = label_studio_environment(environment / _EMPTY.parent)
        _run(python, str(manage), "migrate", env=empty)
        (environment / "installed").touch()
        return environment / "bin" / "label-studio"


def _run(*argv: str, env: dict[str, str] | None = None) -> None:
    environment = {**os.environ, **(env or {})}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
    logger.debug("%s:\n%s", " ".join(argv), done.stdout)
    if done.returncode:
        raise StartError(
            f"Label Studio could not be installed: {' '.join(argv)} ended with {done.returncode}:\n"
            f"{done.stderr[-2000:]}"
        )


def _give_database(command: Path, folder: Path) -> None:
    """Put the empty database that was made with ``command`` into ``folder``, if it has none."""
    empty, own = command.absolute().parents[1] / _EMPTY, folder / _EMPTY.name
    if empty.exists() and not own.exists():
        write_whole(own, empty.read_bytes())


@dataclass(frozen=True)
class LabelStudioServer:
    """A running server: its address, the first user's login, and a personal access token."""

    url: str
    email: str
    password: str
    token: str


class Session:
    """A person's browser session, without the browser: cookies and CSRF, as the pages use them."""

    def __init__(self, url: str, email: str, password: str) -> None:
        self.url = url
        self.email = email
        self.http = requests.Session()
        self.call("GET", "/user/login/")
        self.call(
            "POST",
            "/user/login/",
            data={
                "email": email,
                "password": password,
                "csrfmiddlewaretoken": self.http.cookies["csrftoken"],
            },
            allow_redirects=False,
        )
        if "sessionid" not in self.http.cookies:
            raise StartError(f"Label Studio at {url} refused the login of {email}.")

    def call(self, method: str, path: str, **kwargs: object) -> requests.Response:
        """One request with the session's cookies and CSRF token. StudioError without an answer."""
        headers = {"X-CSRFToken": self.http.cookies.get("csrftoken", ""), "Referer": self.url}
        try:
            return self.http.request(
                method,
                f"{self.url}{path}",
                headers=headers,
                timeout=120,
                **kwargs,  # type: ignore[arg-type]
            )
        except requests.RequestException as error:
            raise StudioError(
                f"Label Studio at {self.url} does not answer {method} {path}: {error}"
            ) from error

    def json(self, method: str, path: str, **kwargs: object) -> Any:
        """What `call` is answered. StudioError for a refusal."""
        answer = self.call(method, path, **kwargs)
        if not answer.ok:
            raise StudioError(
                f"Label Studio at {self.url} answered {answer.status_code} to {method} {path}: "
                f"{answer.text[:200]}"
            )
        return answer.json()

    def personal_access_token(self) -> str:
        """A new personal access token of this user."""
        answer = self.call("POST", "/api/token/")
        if answer.status_code != 201:
            raise StartError(
                f"Label Studio made no access token: {answer.status_code} {answer.text[:200]}"
            )
        token: str = answer.json()["token"]
        return token

    def invite(self, email: str, password: str) -> Session:
        """Sign another person up in the same organisation, and log in as them."""
        link = self.call("GET", "/api/invite").json()["invite_url"]
        signup = requests.Session()
        page = f"{self.url}{link}"
        signup.get(page, timeout=30)
        signup.post(
            page,
            data={
                "email": email,
                "password": password,
                "csrfmiddlewaretoken": signup.cookies["csrftoken"],
            },
            headers={"Referer": page},
            timeout=30,
            allow_redirects=False,
        )
        return Session(self.url, email, password)


def start_label_studio(
    group: ProcessGroup,
    command: Path,
    folder: Path,
    *,
    port: int | None = None,
    allow_private_addresses: bool = True,
    database: Mapping[str, str] | None = None,
) -> LabelStudioServer:
    """Start a server with its data in ``folder`` and create a token (some 10 s).

    ``allow_private_addresses``: set the two settings without which Label Studio refuses an ML
    backend on this machine. ``database``: Label Studio's variables of another one (DJANGO_DB,
    POSTGRE_HOST, …), whose tables it makes if they are not there; None: SQLite in ``folder``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if database is None:
        _give_database(command, folder)
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    guard = "false" if allow_private_addresses else "true"
    env = label_studio_environment(
        folder,
        database,
        ML_BLOCK_LOCAL_IP=guard,
        SSRF_PROTECTION_ENABLED=guard,
        TASK_LOCK_TTL="3600",
    )
    argv = [str(command), "start", "--no-browser", "--internal-host", "127.0.0.1"]
    argv += ["--port", str(port), "--username", _EMAIL, "--password", _PASSWORD]
    group.start("label-studio", argv, env=env, cwd=folder)

    def answers() -> bool:
        try:
            return requests.get(f"{url}/health", timeout=2).status_code == 200
        except requests.RequestException:
            return False

    group.wait("label-studio", answers, timeout_s=180)
    session = Session(url, _EMAIL, _PASSWORD)
    return LabelStudioServer(url, _EMAIL, _PASSWORD, session.personal_access_token())
