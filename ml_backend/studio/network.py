"""Connections that end at their deadline, and only to network addresses that may be asked.

httpx counts its timeouts from packet to packet, so a byte every few seconds holds it for ever; and
it looks a name up by itself, so that what was checked need not be what is connected to. Both are
mended below it, where it opens connections.
"""

from __future__ import annotations

import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from ml_backend.studio.failures import StudioError

__all__ = ["checked_client"]

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_UNICAST = ipaddress.ip_network("2000::/3")
"""All of IPv6 that is handed out; what lies elsewhere stands for IPv4, a site or a link."""
_EXAMPLES = ipaddress.ip_network("3fff::/20")
_SocketOption = (
    tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]
)


def checked_client(
    url: httpx.URL, certificates: ssl.SSLContext, until: float, *, private: bool
) -> httpx.Client:
    """A client for ``url`` that follows no redirect.

    ``until``: the moment of `time.monotonic` at which all it does ends in `httpx.TimeoutException`.
    ``private``: it may connect to addresses that are not public; else StudioError names them. Where
    the environment sets an HTTP proxy, that decides whom a name stands for; addresses that are no
    names are refused here.
    """
    transport = httpx.HTTPTransport(verify=certificates)
    # The one seam for it: httpx has no argument for httpcore's.
    transport._pool = _pool(url, certificates, until, private)
    left = max(until - time.monotonic(), 0.001)
    return httpx.Client(transport=transport, timeout=left, follow_redirects=False)


def _pool(
    url: httpx.URL, certificates: ssl.SSLContext, until: float, private: bool
) -> httpcore.ConnectionPool:
    proxies = getproxies()
    given = proxies.get(url.scheme) or proxies.get("all")
    if given is None or proxy_bypass(url.host):
        network = _Network(until, private)
        return httpcore.ConnectionPool(ssl_context=certificates, network_backend=network)
    if not private:
        with suppress(ValueError):  # a name
            _check_public(url.host, str(ipaddress.ip_address(url.host)))
    proxy = httpx.Proxy(given)
    return httpcore.HTTPProxy(
        proxy_url=str(proxy.url),
        proxy_auth=proxy.raw_auth,
        ssl_context=certificates,
        network_backend=_Network(until, private=True),
    )


class _Network(httpcore.NetworkBackend):
    """TCP, by names that are looked up and checked here."""

    def __init__(self, until: float, private: bool) -> None:
        self._until = until
        self._private = private
        self._system = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[_SocketOption] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address of ``host`` that answers; to none if one is refused."""
        addresses = _addresses(host, port, self._until)
        if not self._private:
            for address in addresses:
                _check_public(host, address)
        failed: Exception = httpcore.ConnectError(f"{host} has no address")
        for place, address in enumerate(addresses):
            left = _left(self._until, httpcore.ConnectTimeout)
            # One that swallows packets, as IPv6 does without a way out, leaves time for the others.
            share = left / (len(addresses) - place)
            try:
                stream = self._system.connect_tcp(
                    address, port, share, local_address, socket_options
                )
                return _Stream(stream, self._until)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed


class _Stream(httpcore.NetworkStream):
    """A connection that ends with the deadline, whatever arrives."""

    def __init__(self, stream: httpcore.NetworkStream, until: float) -> None:
        self._stream = stream
        self._until = until

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._until, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._until, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(self._until, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left), self._until)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(until: float, too_late: type[httpcore.TimeoutException]) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise too_late("the time for this download is over")
    return left


def _addresses(host: str, port: int, until: float) -> list[str]:
    """The network addresses of ``host``. In a thread of its own: the system's resolver takes no
    timeout."""
    found: queue.SimpleQueue[list[str] | OSError | UnicodeError] = queue.SimpleQueue()

    def resolve() -> None:
        try:
            rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.put(list(dict.fromkeys(str(row[4][0]) for row in rows)))
        except (OSError, UnicodeError) as error:  # UnicodeError: a label that is too long
            found.put(error)

    threading.Thread(target=resolve, daemon=True, name="resolve").start()
    try:
        answer = found.get(timeout=_left(until, httpcore.ConnectTimeout))
    except queue.Empty:
        raise httpcore.ConnectTimeout(f"{host} was not looked up in time") from None
    if isinstance(answer, list):
        return answer
    raise httpcore.ConnectError(f"{host} cannot be looked up: {answer}")


def _check_public(host: str, address: str) -> None:
    if not is_public(address):
        raise StudioError(
            f"{host} is at {address}, which is no public address: images are not fetched from "
            "there unless NEXTSLICE_IMAGE_HOSTS names that host"
        )


def is_public(address: str) -> bool:
    """Whether the IP ``address`` is one of the open internet, the one inside another one too, as in
    ``::ffff:127.0.0.1``."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inside = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in _NAT64:
            inside = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inside:
            return is_public(str(inside))
        if ip not in _UNICAST or ip in _EXAMPLES:
            return False
    return ip.is_global and not ip.is_multicast
