"""A Label Studio over HTTP that can be made to fail, and held in the middle of a request."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ml_backend.embedded.processes import StartError
from ml_backend.studio.client import Backend
from tests.http_studio import CONFIG, HttpStudio, _Handler
from tests.memory_studio import MemoryStudio
from tests.segmentation_phantom import Phantom

__all__ = ["BACKEND_URL", "SLICES", "SLOW_S", "FaultyStudio", "Gate", "faulty_studio"]

SLICES = 22
BACKEND_URL = "http://127.0.0.1:9"
_PHANTOM = Phantom(SLICES)
SLOW_S = 40.0
_LONGEST_S = 300.0


@dataclass
class Gate:
    """Holds the first request that ``asked`` is true of, by method and path, until it is opened."""

    asked: Callable[[str, str], bool]
    reached: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    def wait(self, seconds: float = 120.0) -> None:
        """Until a request stands before it. Raises StartError."""
        if not self.reached.wait(seconds):
            raise StartError(f"no such request came within {seconds:.0f} s")


class NumberedStudio(MemoryStudio):
    """Its predictions have ids, by which they are deleted."""

    def import_predictions(self, project_id: int, predictions: list[dict[str, Any]]) -> int:
        first = max((row["id"] for row in self.imported), default=0) + 1
        numbered = [{**row, "id": first + i} for i, row in enumerate(predictions)]
        return super().import_predictions(project_id, numbered)

    def rename(self, number: int, title: str) -> dict[str, Any]:
        """Of several backends one gets another title."""
        backends = [backend if backend.id != number else backend.model_copy(update={"title": title})
                    for backend in self.backends(7)]  # fmt: skip
        self.backend, *self.other_backends = backends
        return {}

    def delete_prediction(self, number: int) -> None:
        self.imported = [row for row in self.imported if row["id"] != number]


class FaultyStudio(HttpStudio):
    """``status``: what every request is answered with instead, or None. ``quick``: while it is not
    set, every answer takes `SLOW_S` seconds or until it is. ``gates``: see `Gate`."""

    allow_reuse_address = True

    def __init__(self, memory: NumberedStudio) -> None:
        super().__init__(memory)
        self.RequestHandlerClass = _FaultyHandler
        self.status: int | None = None
        self.quick = threading.Event()
        self.quick.set()
        self.gates: list[Gate] = []
        self._thread: threading.Thread | None = None

    def gate(self, asked: Callable[[str, str], bool]) -> Gate:
        """A new gate."""
        self.gates.append(Gate(asked))
        return self.gates[-1]

    def up(self) -> None:
        """Answer; again at the same port, where it was down."""
        if self.socket.fileno() < 0:
            self.socket = socket.socket(self.address_family, self.socket_type)
            self.server_bind()
            self.server_activate()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def down(self) -> None:
        """Refuse every connection."""
        if self._thread is not None:
            self.shutdown()
            self._thread.join()
            self._thread = None
            self.socket.close()


class _FaultyHandler(_Handler):
    server: FaultyStudio

    def route(self) -> None:
        path = urlsplit(self.path).path
        for gate in self.server.gates:
            if not gate.reached.is_set() and gate.asked(self.command, path):
                gate.reached.set()
                gate.opened.wait(_LONGEST_S)
        self.server.quick.wait(SLOW_S)
        if self.server.status is not None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.reply({"detail": "as the test wants it"}, self.server.status)
            return
        super().route()

    do_GET = do_POST = do_PATCH = do_DELETE = route

    def api(self, path: str, query: dict[str, list[str]], body: Any) -> Any:
        memory = self.server.memory
        assert isinstance(memory, NumberedStudio)
        if path == "api/projects":
            return {"results": [memory.project(7).model_dump(mode="json")], "next": None}
        if path == "api/webhooks":
            return []
        if path == "api/ml":
            return [backend.model_dump() for backend in memory.backends(7)]
        if path.startswith("api/ml/") and memory.other_backends:
            return memory.rename(int(path.rpartition("/")[2]), body["title"])
        if self.command == "DELETE":
            memory.delete_prediction(int(path.rpartition("/")[2]))
            return {}
        return super().api(path, query, body)

    def answer(self, status: int, data: bytes, **headers: str) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # who asked was killed
            super().answer(status, data, **headers)


@contextmanager
def faulty_studio(backend_url: str = BACKEND_URL) -> Iterator[FaultyStudio]:
    """One that answers, until the end of the block; its project has our backend."""
    memory = NumberedStudio(CONFIG, SLICES, lambda i: _PHANTOM.image(_PHANTOM.ids[i]))
    memory.backend = Backend(id=1, url=backend_url, title="nextslice")
    with FaultyStudio(memory) as server:
        server.up()
        try:
            yield server
        finally:
            server.quick.set()
            for gate in server.gates:
                gate.opened.set()
            server.down()
