"""An array on a Tiled server, as facilities serve their scans: ``scan.tiled`` says where it is.

    {"uri": "https://tiled.example/api/v1/metadata/raw/scan", "voxel_size": [1, 1, 1], "unit": "µm"}

Slices are asked for one by one over Tiled's HTTP API (version 1). Only servers that the bounds name
are asked, and the key goes nowhere else: whoever may put a file there chooses the address.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, unquote, urlsplit

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.formats.axes import AxisChoice, choose_axes
from ml_backend.volumes.formats.checks import native, number_type, reading
from ml_backend.volumes.formats.format import Format
from ml_backend.volumes.formats.notes import Notes
from ml_backend.volumes.limits import TEXT_BYTES
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError

__all__ = ["FORMAT", "TiledUnavailable", "read"]

_EXPECTED = "an array that a Tiled server has"
_SETTING = "NEXTSLICE_TILED_SERVERS"
_PLACE = re.compile(r"/(?:api/v1/(?:metadata|array/full)|ui/browse)/(.+?)/?")
_ASKED_BYTES = 64 << 20
"""Of a request: servers refuse larger ones than they are set to (300 MB, if nobody said)."""

Slice = npt.NDArray[Any]


class TiledUnavailable(VolumeError):
    """A Tiled server does not answer, or not now."""


def read(path: Path, options: ReadOptions) -> Volume:
    """The array's names of its axes are obeyed (`choose_axes`)."""
    with reading(path, 'JSON, {"uri": "https://…/api/v1/metadata/…"}'), path.open("rb") as file:
        said = json.loads(file.read(TEXT_BYTES))
        if not isinstance(said, dict) or not isinstance(said.get("uri"), str):
            raise VolumeError(
                f'{path} names no array, expected {{"uri": "https://…/api/v1/metadata/…"}}'
            )
    notes = Notes.from_json(path, said)
    node = _Node(path, said["uri"], options)
    try:
        with reading(path, _EXPECTED):
            names, lengths, dtype = node.structure()
            choice = choose_axes(path, names, lengths, options)
        array = _Array(node, lengths, dtype, choice)
        native_type = number_type(path, dtype)
        return notes.volume(path, array.shape, native_type, array.read, node.close)
    except BaseException:
        node.close()
        raise


FORMAT = Format(
    name="tiled",
    title="Tiled",
    summary=(
        '`.tiled`, a file of JSON with the address of an array on a Tiled server, `{"uri": '
        '"https://…/api/v1/metadata/…"}`; the server must be one of `NEXTSLICE_TILED_SERVERS`'
    ),
    readable="Tiled (.tiled)",
    endings=(".tiled",),
    read=read,
    chooses=True,
    apart=False,
    place=90,
)


@dataclass(eq=False)
class _Node:
    """What is at ``uri``, which the volume's file ``path`` names."""

    path: Path
    uri: str
    options: ReadOptions
    _server: str = ""
    _place: str = ""
    _client: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        import httpx

        self._server, self._place = _allowed(self.path, self.uri, self.options)
        key = self.options.bounds.tiled_key
        headers = {"Accept-Encoding": "identity"} | (
            {"Authorization": f"Apikey {key}"} if key else {}
        )
        self._client = httpx.Client(headers=headers, timeout=self.options.bounds.timeout_s)

    def close(self) -> None:
        """Every connection."""
        self._client.close()

    def structure(self) -> tuple[list[str], list[int], np.dtype[Any]]:
        """Names and lengths of the axes, and the type. Raises VolumeError for another thing than an
        array of numbers."""
        url = f"{self._server}/api/v1/metadata/{self._place}"
        said = json.loads(self._get(url, {}, TEXT_BYTES, "application/json"))
        attributes = said["data"]["attributes"]
        if (family := attributes["structure_family"]) != "array":
            raise VolumeError(f"{self.uri} is a {str(family)[:40]}, expected an array")
        structure = attributes["structure"]
        kind = structure["data_type"]
        if "kind" not in kind or kind["kind"] not in ("b", "i", "u", "f"):
            raise VolumeError(f"{self.uri} has values of type {str(kind)[:200]}, expected numbers")
        order = {"big": ">", "little": "<"}.get(kind["endianness"], "|")
        lengths = [int(length) for length in structure["shape"]]
        names = [str(name or "") for name in structure.get("dims") or [""] * len(lengths)]
        return names, lengths, np.dtype(f"{order}{kind['kind']}{int(kind['itemsize'])}")

    def values(self, cut: tuple[int | slice, ...], size: int) -> bytes:
        """Those of a part of the array, ``size`` bytes."""
        url = f"{self._server}/api/v1/array/full/{self._place}"
        asked = {"slice": ",".join(map(_as_text, cut)), "format": "application/octet-stream"}
        found = self._get(url, asked, size, "application/octet-stream")
        if len(found) != size:
            raise VolumeError(
                f"{self.uri} gives {len(found)} bytes of {asked['slice']}, expected {size}: has "
                "the array been replaced?"
            )
        return found

    def _get(self, url: str, asked: Mapping[str, str], most: int, kind: str) -> bytes:
        import httpx

        limit = self.options.bounds.timeout_s
        ends, parts, size = time.monotonic() + limit, [], 0
        try:
            with self._client.stream("GET", url, params=asked, headers={"Accept": kind}) as answer:
                self._check(answer.status_code)
                for part in answer.iter_raw():
                    parts.append(part)
                    size += len(part)
                    if size > most:
                        raise VolumeError(
                            f"{self.uri} answers with more than the {most} bytes that are expected"
                        )
                    if time.monotonic() > ends:
                        raise TiledUnavailable(
                            f"{self._server} has not answered for {self.path} in {limit:g} s"
                        )
        except httpx.TransportError as error:
            raise TiledUnavailable(
                f"{self._server} cannot be asked for {self.path} "
                f"({str(error) or type(error).__name__})"
            ) from error
        return b"".join(parts)

    def _check(self, status: int) -> None:
        if status == 200:
            return
        if status in (401, 403):
            raise VolumeError(
                f"{self.uri} is not shown to us ({status}), expected it to be public, or "
                "TILED_API_KEY to be a key that may read it"
            )
        if status == 404:
            raise VolumeError(f"{self.uri} is not there (404), expected an array on the server")
        kind = TiledUnavailable if status == 429 or status >= 500 else VolumeError
        raise kind(f"{self.uri} is answered with status {status}, expected 200")


@dataclass(frozen=True)
class _Array:
    node: _Node
    lengths: list[int]
    dtype: np.dtype[Any]
    choice: AxisChoice

    @property
    def shape(self) -> tuple[int, int, int]:
        z, y, x = (self.lengths[axis] for axis in self.choice.axes)
        return z, y, x

    def read(self, axis: int, index: int) -> Slice:
        """The slice at ``index`` across ``axis``, in bands that no server refuses."""
        rows = min(other for other in range(3) if other != axis)
        columns = 3 - axis - rows
        count, size = self.shape[rows], self.shape[columns] * self.dtype.itemsize
        band = max(1, _ASKED_BYTES // max(1, size))
        with reading(self.node.path, _EXPECTED):
            parts = [
                self._band(axis, index, rows, first, min(first + band, count))
                for first in range(0, count, band)
            ]
            return native(np.ascontiguousarray(np.concatenate(parts)))

    def _band(self, axis: int, index: int, rows: int, first: int, stop: int) -> Slice:
        cut = [*self.choice.index(axis, index, index + 1)]
        cut[self.choice.axes[rows]] = slice(first, stop)
        shape = [
            (one.stop or length) - (one.start or 0)
            for one, length in zip(cut, self.lengths, strict=True)
            if isinstance(one, slice)
        ]
        size = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        values = np.frombuffer(self.node.values(tuple(cut), size), self.dtype).reshape(shape)
        return cast(Slice, values.transpose(self.choice.order).take(0, axis))


def _as_text(one: int | slice) -> str:
    if isinstance(one, int):
        return str(one)
    return f"{one.start or 0}:{'' if one.stop is None else one.stop}"


def _allowed(path: Path, uri: str, options: ReadOptions) -> tuple[str, str]:
    """The server as the bounds name it, and the place on it, quoted. Raises VolumeError."""
    servers = options.bounds.tiled
    with reading(path, "an address, https://…/api/v1/metadata/…"):
        asked = urlsplit(uri)
        for server in servers:
            known = urlsplit(server)
            same = (known.scheme, known.netloc) == (asked.scheme, asked.netloc)
            if not same or not asked.path.startswith(known.path):
                continue
            found = _PLACE.fullmatch(asked.path[len(known.path) :])
            parts = [unquote(part) for part in found[1].split("/")] if found else []
            if not parts or any(part in ("", ".", "..") for part in parts) or asked.query:
                raise VolumeError(
                    f"{path} names {uri[:200]}, expected {server}/api/v1/metadata/ and the path of "
                    "an array"
                )
            return server, "/".join(quote(part, safe="") for part in parts)
    listed = ", ".join(servers) or "none"
    raise VolumeError(
        f"{path} names {uri[:200]}, expected it on a server of {_SETTING} ({listed}): add that "
        "server to it, for the backend and the workers, if you trust it"
    )
