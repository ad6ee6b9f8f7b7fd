"""The address of a slice: which voxels, through which window, signed.

``/slices/<volume>/<axis>/<index>.png?high=…&low=…&key=…&sig=…``. The signature covers the path from
``/slices/`` on and the query, percent-decoded and sorted, but neither scheme nor host nor what a
reverse proxy puts in front: an address stays good when the backend moves or a proxy spells it anew.
Addresses live in task data, so workers find a task's native values by them too, and they do not
expire unless asked.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from ml_backend.errors import NextsliceError, SettingsError
from ml_backend.volumes.volume import AXES, ReadOptions
from ml_backend.volumes.window import Window

__all__ = [
    "AddressRefused",
    "SliceAddress",
    "SliceKeys",
    "is_slice_address",
    "slice_of",
]

_PREFIX = "/slices/"
_PATH = re.compile(
    r"/slices/(?P<volume>.+)/(?P<axis>[zyx])/(?P<index>0|[1-9][0-9]*)\.png", re.DOTALL
)
_END = re.compile(r"/[zyx]/[0-9]+\.png\Z")
_SIGNED = (re.compile(r"\bkey="), re.compile(r"\bsig="))
_LONGEST = 1 << 14
"""Characters of an address: it may come from anybody, and is looked at in several ways."""
_MOST_PLACES = 8
"""Where in a path ours may begin: each is a signature to compute."""
_DIGITS = 32
"""Hexadecimal digits of a signature that are sent: 128 bit."""
_SHORTEST_SECRET = 16

Pairs = list[tuple[str, str]]


class AddressRefused(NextsliceError, ValueError):
    """A slice address that is not signed by us, or no longer good."""


@dataclass(frozen=True)
class SliceKeys:
    """Secrets of one or more keys: the first signs, all verify.

    Raises SettingsError for a secret of fewer than 16 characters: whoever has one address could
    guess it.
    """

    secrets: tuple[str, ...] = field(repr=False)

    def __post_init__(self) -> None:
        for secret in self.secrets:
            if len(secret) < _SHORTEST_SECRET:
                raise SettingsError(
                    f"found a secret of {len(secret)} characters, expected {_SHORTEST_SECRET} or "
                    "more, as `openssl rand -hex 32` gives them"
                )
        if not self.secrets:
            raise SettingsError("found no secret, expected at least one")

    @classmethod
    def parse(cls, text: str) -> SliceKeys:
        """Keys from secrets separated by commas."""
        return cls(tuple(filter(None, (part.strip() for part in text.split(",")))))

    def sign(self, message: str) -> tuple[str, str]:
        """Id of the key that signs, and the signature."""
        return _key_id(self.secrets[0]), _signature(self.secrets[0], message)

    def verify(self, message: str, key: str, signature: str, what: str = "slice address") -> bool:
        """Whether ``signature`` is that of the key called ``key``, in constant time.

        Raises AddressRefused, which says of ``what``, when there is no such key.
        """
        secret = {_key_id(secret): secret for secret in self.secrets}.get(key)
        if secret is None:
            raise AddressRefused(
                f"{what}: it is signed with key {key!r}, which this backend has not (any "
                "more): keep old secrets behind the new one in NEXTSLICE_SLICE_SECRET"
            )
        return hmac.compare_digest(_signature(secret, message).encode(), signature.encode())


def _key_id(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()[:8]


def _signature(secret: str, message: str) -> str:
    return hmac.new(secret.encode(), message.encode(), hashlib.sha256).hexdigest()[:_DIGITS]


@dataclass(frozen=True)
class SliceAddress:
    """Slice ``index`` across ``axis`` ("z", "y", "x") of the volume called ``volume``.

    ``window``: what a browser sees; None: 8-bit values as they are, others between the volume's
    percentiles. ``options``: how the file is read. ``expires``: seconds since 1970, None: never.
    Raises ValueError for an axis, an index or a name that cannot be one.
    """

    volume: str
    axis: str
    index: int
    window: Window | None = None
    options: ReadOptions = field(default_factory=ReadOptions)
    expires: int | None = None

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise ValueError(f"axis is {self.axis!r}, expected one of {', '.join(AXES)}")
        if self.index < 0 or not self.volume:
            raise ValueError(
                f"slice {self.index} of volume {self.volume!r}: expected 0 or more, and a name"
            )

    def url(self, base: str, keys: SliceKeys) -> str:
        """The signed address under ``base``, as ``https://nextslice.example``."""
        path = f"{_PREFIX}{self.volume}/{self.axis}/{self.index}.png"
        pairs = self._pairs()
        key, signature = keys.sign(_message(path, [*pairs, ("key", _key_id(keys.secrets[0]))]))
        query = _encoded([*sorted(pairs), ("key", key), ("sig", signature)])
        return f"{base.rstrip('/')}{quote(path)}?{query}"

    @classmethod
    def parse(cls, url: str, keys: SliceKeys, now: float | None = None) -> SliceAddress:
        """The address in ``url``, absolute or from its path on, that one of ``keys`` signed.

        ``now``: seconds since 1970, default the clock's. Raises AddressRefused for a form that is
        not ours, an unknown key, a wrong or missing signature, and one that has expired.
        """
        try:
            _check_length(url)
            parts = urlsplit(url)
            pairs = parse_qsl(parts.query, keep_blank_values=True)
            path, signed = _verified(unquote(parts.path), pairs, keys)
        except AddressRefused:
            raise
        except ValueError as error:  # of a host or an encoding that cannot be
            raise AddressRefused(f"slice address: it is no address ({error})") from None
        return cls._read(path, signed, time.time() if now is None else now)

    @classmethod
    def claimed(cls, url: str) -> SliceAddress | None:
        """What the address in ``url`` says, whoever signed it: to compare it, never to serve it.

        None for what cannot be read.
        """
        try:
            _check_length(url)
            parts = urlsplit(url)
            path = next(_paths(unquote(parts.path)), None)
            return None if path is None else cls._read(path, dict(parse_qsl(parts.query)), now=0)
        except ValueError:  # AddressRefused is one
            return None

    def _pairs(self) -> Pairs:
        """What the query says, but for key and signature."""
        found: dict[str, Any] = {}
        if self.window is not None:
            # repr of a float: the shortest text that gives the very same number back
            found |= {"low": repr(float(self.window.low)), "high": repr(float(self.window.high))}
        found |= {"dataset": self.options.dataset, "dtype": self.options.dtype}
        if self.options.shape is not None:
            found["shape"] = "x".join(map(str, self.options.shape))
        found["oriented"] = 1 if self.options.oriented else None
        found["flip"] = self.options.flip or None
        found |= {"offset": self.options.offset, "expires": self.expires}
        found |= {"channel": self.options.channel, "time": self.options.time}
        return [(name, str(value)) for name, value in found.items() if value is not None]

    @classmethod
    def _read(cls, path: str, query: dict[str, str], now: float) -> SliceAddress:
        """The address of a path and a query whose signature fits."""
        match = _PATH.fullmatch(path)
        assert match is not None
        try:
            expires = int(query["expires"]) if "expires" in query else None
            window = Window(float(query["low"]), float(query["high"])) if "low" in query else None
            options = ReadOptions(
                dataset=query.get("dataset"),
                shape=_shape(query["shape"]) if "shape" in query else None,
                dtype=query.get("dtype"),
                offset=int(query["offset"]) if "offset" in query else None,
                oriented=query.get("oriented") == "1",
                flip=_flip(query.get("flip", "")),
                channel=int(query["channel"]) if "channel" in query else None,
                time=int(query["time"]) if "time" in query else None,
            )
            index = int(match["index"])
            found = cls(match["volume"], match["axis"], index, window, options, expires)
        except (KeyError, ValueError) as error:
            raise AddressRefused(f"slice address: it cannot be read ({error})") from None
        if expires is not None and expires <= now:
            # no number that is too large to be shown
            raise AddressRefused(f"slice address: it expired {now - max(0, expires):.0f} s ago")
        return found


def is_slice_address(url: Any) -> bool:
    """Whether ``url`` has the form of a slice address. Says nothing about its signature. Takes time
    that grows with its length alone: it may be task data, which anybody writes."""
    if not isinstance(url, str) or len(url) > _LONGEST:
        return False
    path, _, query = url.partition("#")[0].partition("?")
    end = _END.search(path)
    if end is None or not 0 <= path.find(_PREFIX) < end.start() - len(_PREFIX):
        return False
    if not all(name.search(query) for name in _SIGNED):
        return False
    try:
        urlsplit(url)
        url.encode()
    except ValueError:  # of a host, or half a pair of surrogates
        return False
    return True


def slice_of(url: str) -> str:
    """What the slice address ``url`` has in common with every other one of the same voxels: path
    and reading options, whoever signed it, under whatever host and through whatever window."""
    parts = urlsplit(url)
    path = unquote(parts.path)
    options = {option.name for option in fields(ReadOptions)}
    pairs = sorted(pair for pair in parse_qsl(parts.query) if pair[0] in options)
    return f"{path.partition(_PREFIX)[2] or path}?{_encoded(pairs)}"


def _check_length(url: str) -> None:
    if len(url) > _LONGEST:
        raise AddressRefused(
            f"slice address: found {len(url)} characters, expected at most {_LONGEST}"
        )


def _verified(path: str, pairs: Pairs, keys: SliceKeys) -> tuple[str, dict[str, str]]:
    """Path and query that the signature in ``pairs`` fits. Raises AddressRefused."""
    signatures = [value for name, value in pairs if name == "sig"]
    signed = [pair for pair in pairs if pair[0] != "sig"]
    key = dict(signed).get("key")
    if len(signatures) != 1 or key is None:
        raise AddressRefused("slice address: it is not signed, key=… and sig=… are missing")
    for ours in _paths(path):
        if keys.verify(_message(ours, signed), key, signatures[0]):
            return ours, dict(signed)
    raise AddressRefused("slice address: its signature does not fit, it was changed")


def _paths(path: str) -> Iterator[str]:
    """What of ``path`` may be ours: from each ``/slices/`` on, the longest first, of the first
    few."""
    start = path.find(_PREFIX)
    for _ in range(_MOST_PLACES):
        if start < 0:
            return
        if _PATH.fullmatch(path, start):
            yield path[start:]
        start = path.find(_PREFIX, start + 1)


def _message(path: str, pairs: Pairs) -> str:
    """What is signed: the path and the query in one spelling, whatever a proxy made of them."""
    return f"nextslice slice\n{quote(path)}?{_encoded(sorted(pairs))}"


def _encoded(pairs: Pairs) -> str:
    return urlencode(pairs, quote_via=quote, safe="")


def _flip(text: str) -> str:
    if text != "".join(axis for axis in AXES if axis in text):
        raise ValueError(f"flip is {text!r}, expected some of zyx")
    return text


def _shape(text: str) -> tuple[int, int, int]:
    z, y, x = (int(length) for length in text.split("x"))
    return z, y, x
