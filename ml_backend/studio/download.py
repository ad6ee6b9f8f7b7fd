"""Images from where they lie: Label Studio, its storages, and the hosts that the site names.

Whoever may create a task decides which address we ask. So an address is looked at before it is
asked: its name, the network address that the name stands for, and the same for each redirect. A
download has one deadline, from its first packet to its last.
"""

from __future__ import annotations

import posixpath
import ssl
import threading
import time
from fnmatch import fnmatchcase
from functools import cached_property

import httpx
from label_studio_sdk.core.api_error import ApiError

from ml_backend.studio.body import ENCODINGS, MOST_BYTES, read_body
from ml_backend.studio.failures import ImageUnavailable, StudioError
from ml_backend.studio.network import checked_client
from ml_backend.studio.token import StudioToken, same_server

__all__ = ["DOWNLOAD_S", "Downloads", "ImageHosts"]

DOWNLOAD_S = 30.0
"""For one image, redirects included."""
_REDIRECTS = 5
_FAILURES, _QUIET_S = 5, 5.0
"""A host that failed so often in a row is not asked for that long."""
_HOSTS_NOTED = 1000
_NOT_NOW = {401, 408, 425, 429}
"""Statuses that may be others in a moment, besides all from 500 on."""


class ImageHosts:
    """Whom images are downloaded from besides Label Studio and its storages.

    ``text``: hosts separated by commas: ``images.lab``, ``10.0.0.7:9000``, ``*.example.org``; these
    may have any network address. ``*``: every host with a public one. Raises ValueError for what
    is no host.
    """

    def __init__(self, text: str = "") -> None:
        entries = {entry.strip().lower() for entry in text.split(",")} - {""}
        for entry in sorted(entries):
            if set(entry) & set("/ @?#"):
                raise ValueError(
                    f"found {entry!r}, expected hosts such as images.example, 10.0.0.7:9000 or "
                    "*.example.org, separated by commas, or *"
                )
        self.any_public = "*" in entries
        self._named = [entry.replace("[", "[[]") for entry in entries - {"*"}]

    def name(self, url: httpx.URL) -> bool:
        """Whether the host of ``url`` is among them, with or without its port."""
        host = f"[{url.host}]" if ":" in url.host else url.host
        port = url.port or {"https": 443}.get(url.scheme, 80)
        return any(fnmatchcase(o, e) for e in self._named for o in (host, f"{host}:{port}"))


class Downloads:
    """Fetches images for the Label Studio at ``server``. Safe to use from many threads.

    ``seconds``: for one image. ``hosts``: whom else to ask.
    """

    def __init__(
        self, server: str, token: StudioToken, hosts: ImageHosts, seconds: float = DOWNLOAD_S
    ) -> None:
        self.server = httpx.URL(server)
        self.token = token
        self.hosts = hosts
        self._seconds = seconds
        self.patience = _Patience()

    def image(self, url: httpx.URL, within_s: float | None = None) -> bytes:
        """The bytes at ``url``. ``within_s``: in less time than usual.

        The token is sent to Label Studio alone: not to another scheme, host or port, nor outside
        the path that it is under, nor once a redirect has led elsewhere.

        Raises ImageUnavailable for what may be there in a moment; StudioError for a host that may
        not be asked, an image that is gone or too large, and too many redirects.
        """
        seconds = self._seconds if within_s is None else min(within_s, self._seconds)
        way = _Way(self, time.monotonic() + seconds, seconds)
        for _ in range(_REDIRECTS + 1):
            found = way.ask(url)
            if isinstance(found, bytes):
                return found
            url = found
        raise StudioError(f"it is behind more than {_REDIRECTS} redirects, the last to {url.host}")

    @cached_property
    def certificates(self) -> ssl.SSLContext:
        """Read once: that takes longer than a small image."""
        return httpx.create_ssl_context()


class _Way:
    """The way to one image: through which hosts, and until when."""

    def __init__(self, downloads: Downloads, until: float, seconds: float) -> None:
        self._of = downloads
        self._until = until
        self._seconds = seconds
        self._only_studio = True
        """Nobody but Label Studio has been asked."""
        self._sent_on = False
        """Label Studio has sent us on, to its storage."""

    def ask(self, url: httpx.URL) -> bytes | httpx.URL:
        """The image, or where a redirect leads."""
        ours = same_server(url, self._of.server)
        private = self._may_be_private(url, ours)
        self._only_studio &= ours and _within(url, self._of.server)
        host = url.netloc.decode("ascii")
        self._of.patience.check(host)
        try:
            found = self._fetch(url, private)
        except ImageUnavailable:
            self._of.patience.failed(host)
            raise
        except httpx.TimeoutException as error:
            self._of.patience.failed(host)
            raise ImageUnavailable(f"it did not arrive within {self._seconds:.3g} s") from error
        except (httpx.TransportError, httpx.DecodingError, ApiError) as error:
            self._of.patience.failed(host)
            raise ImageUnavailable(f"{type(error).__name__}: {error}") from error
        self._of.patience.answered(host)
        self._sent_on |= ours
        return found

    def _may_be_private(self, url: httpx.URL, ours: bool) -> bool:
        """Whether the host may have an address that is not public. StudioError: it is not asked."""
        hosts = self._of.hosts
        if url.scheme not in ("http", "https") or not url.host:
            raise StudioError(f"{url.scheme or 'no'} address, expected http or https with a host")
        if ours or hosts.name(url):
            return True
        if not (self._sent_on or hosts.any_public):
            raise StudioError(
                f"{url.host} is neither Label Studio nor a host that images may come from: name it "
                "in NEXTSLICE_IMAGE_HOSTS, for the backend and the workers"
            )
        return False

    def _fetch(self, url: httpx.URL, private: bool) -> bytes | httpx.URL:
        of = self._of
        auth = of.token if self._only_studio else None
        with checked_client(url, of.certificates, self._until, private=private) as client:
            request = client.build_request("GET", url, headers={"Accept-Encoding": ENCODINGS})
            answer = client.send(request, stream=True, auth=auth)
            try:
                if answer.next_request is not None:
                    return answer.next_request.url
                _check_status(answer.status_code)
                return read_body(answer, MOST_BYTES)
            finally:
                answer.close()


def _check_status(status: int) -> None:
    if status == 200:
        return
    kind = ImageUnavailable if status in _NOT_NOW or status >= 500 else StudioError
    raise kind(
        f"it answered {status}; expected 200 and an image. Is the address reachable from this "
        "machine?"
    )


class _Patience:
    """How often hosts failed in a row, and until when they are not asked: a pool whose host is down
    or slow waits for it a few times, not once a slice. For many threads."""

    def __init__(self) -> None:
        self._failures: dict[str, tuple[int, float]] = {}
        self._alone = threading.Lock()

    def check(self, host: str) -> None:
        """Raises ImageUnavailable for a host that is not asked at the moment."""
        times, at = self._failures.get(host, (0, 0.0))
        if times >= _FAILURES and time.monotonic() < at + _QUIET_S:
            raise ImageUnavailable(
                f"{host} failed {_FAILURES} times in a row or more and is not asked for "
                f"{_QUIET_S:g} s"
            )

    def failed(self, host: str) -> None:
        with self._alone:
            if len(self._failures) >= _HOSTS_NOTED:
                self._failures.clear()
            self._failures[host] = self._failures.get(host, (0, 0.0))[0] + 1, time.monotonic()

    def answered(self, host: str) -> None:
        with self._alone:
            self._failures.pop(host, None)


def _within(url: httpx.URL, top: httpx.URL) -> bool:
    """Whether the path of ``url`` is in that of ``top``, as servers read it: decoded, without
    ".."."""
    path, folder = (posixpath.normpath(one.path).rstrip("/") + "/" for one in (url, top))
    return path.startswith(folder)
