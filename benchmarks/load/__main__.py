"""Many annotators, a large project, the real Label Studio: what holds, and what does not.

    python -m benchmarks.load [--tasks 100000] [--annotators 50] [--rate 20] [--seconds 300]
        [--database postgresql|sqlite] [--alone 60] [--output load.json]

Starts everything by itself, in a temporary folder and on 127.0.0.1, and stops it: PostgreSQL (as
the user postgres where it is run by root; `apt-get install postgresql`), Label Studio, Redis, our
backend as `nextslice up` serves it, both workers. Then, each with the same people:

alone     Label Studio without us, as fast as it goes for ``--alone`` seconds: its own ceiling
adoption  our backend is connected; until round 0 is published, how often all tasks are listed
webhooks  ``--rate`` webhooks a second, of the form that Label Studio has sent, to our backend
          directly, while a round trains
load      as many submissions a second by people, while rounds train
lost      every submission must be in Label Studio, and in what the next round learns from

Prints a table and writes JSON. All waiting is bounded; a run takes some 15 minutes and, with
100,000 tasks, 1 GB in the temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.load.people import Deeds, annotate, call_webhooks
from benchmarks.load.site import CLASSES, create_tasks, start_site, truth
from benchmarks.load.watch import Watch, listed, wait_for, webhook_times, within
from ml_backend.cli.signals import stop_on_signals
from ml_backend.embedded.annotator import Annotator
from ml_backend.embedded.label_studio import Session
from ml_backend.embedded.processes import ProcessGroup, StartError
from ml_backend.embedded.stack import Stack, default_home
from ml_backend.rounds.artefacts import DATASET
from ml_backend.rounds.project import find_project
from ml_backend.rounds.schedule import GPU
from ml_backend.rounds.service import Service, webhook_secret
from ml_backend.rounds.sync import sync
from ml_backend.studio.database import database_kind
from ml_backend.studio.label_config import bitmask_config, parse_label_config
from ml_backend.studio.projects import register_backend
from ml_backend.studio.task_order import BackendLink

_ADOPTED_WITHIN_S = 1800.0
_TRAINS_WITHIN_S = 300.0
_CHECK = 9_999_999
"""Number of the round whose labels are only looked at."""


class Run:
    """One run: what runs, who annotates, and what was found so far."""

    def __init__(
        self,
        group: ProcessGroup,
        stack: Stack,
        postgresql: dict[str, str] | None,
        arguments: argparse.Namespace,
    ) -> None:
        self.group, self.stack, self.arguments = group, stack, arguments
        self.postgresql = postgresql
        self.service = Service(stack.settings())
        self.log = group.logs / "label-studio.log"
        self.found: dict[str, Any] = {}
        self.deeds: list[Deeds] = []

    @property
    def phases(self) -> Sequence[Callable[[], None]]:
        """In their order."""
        return (self.prepare, self.alone, self.adopt, self.train, self.webhooks, self.load,
                self.lost)  # fmt: skip

    def prepare(self) -> None:
        """Tasks and people."""
        server, asked = self.stack.label_studio, self.arguments
        began = time.monotonic()
        copies = self.postgresql if asked.copy else None
        number = create_tasks(self.service, asked.tasks, "load", copies)
        self.found["import"] = {"tasks": asked.tasks, "seconds": _since(began)}
        self.found["database"] = database_kind(self.service.studio)
        self.project = find_project(self.service, number)
        first = Session(server.url, server.email, server.password)
        config = parse_label_config(bitmask_config(CLASSES))
        self.first = Annotator(first, number, config, truth)

    @cached_property
    def people(self) -> list[Annotator]:
        """Signed up when they are needed: hashing passwords takes a second of CPU each."""
        made = range(self.arguments.annotators)
        sessions = [self.first.session.invite(f"a{i}@nextslice.local", "password-8") for i in made]
        of = self.first
        return [Annotator(session, of.project_id, of.config, truth) for session in sessions]

    def alone(self) -> None:
        """Label Studio's own ceiling."""
        if self.arguments.alone and self.people:
            with Watch(self.project, self._pids()) as watch:
                self._annotate("alone", 1000.0, self.arguments.alone)
            self.found["alone"]["cpu_s"] = watch.cpu()

    def adopt(self) -> None:
        """Connect our backend, as somebody does in the browser."""
        mark, began = self.log.stat().st_size, time.monotonic()
        register_backend(self.service.studio, self.project.number, BackendLink(self._url))
        if not wait_for(lambda: self.project.published is not None, _ADOPTED_WITHIN_S):
            raise StartError(f"round 0 was not published within {_ADOPTED_WITHIN_S:.0f} s")
        seconds = _since(began)
        pages = -(-self.arguments.tasks // 500)
        found = listed(self.log, mark)
        times = round(found["pages"] / pages, 2)
        self.found["adoption"] = {"seconds": seconds, "times_listed": times, **found}

    def train(self) -> None:
        """A submission, of which the webhook is recorded, and a round that trains."""
        self.payload = self._recorded()
        self.project.schedule.start()
        if not wait_for(self._trains, _TRAINS_WITHIN_S):
            raise StartError(f"no round trained within {_TRAINS_WITHIN_S:.0f} s")

    def load(self) -> None:
        """People at their pace while rounds train."""
        people = len(self.people)
        before, mark = webhook_times(self._url), self.log.stat().st_size
        began = time.monotonic()
        with Watch(self.project, self._pids()) as watch:
            deeds = self._annotate("load", self.arguments.rate, self.arguments.seconds)
        after = webhook_times(self._url)
        asked = listed(self.log, mark)["requests"]
        self.found["load"] |= {
            "people": people,
            "label_studio_requests_per_second": round(asked / _since(began), 1),
            "webhooks": within({le: n - before.get(le, 0) for le, n in after.items()}),
            "memory_mib": watch.memory(), "cpu_s": watch.cpu(), "round_steps": watch.rounds(),
        }  # fmt: skip
        self.found["load"]["webhooks"]["of"] = len(deeds.submitted)

    def webhooks(self) -> None:
        """The webhooks alone, at the full pace."""
        with Watch(self.project, self._pids()) as watch:
            deeds = call_webhooks(
                f"{self._url}/webhook", self.payload, webhook_secret(self.service.settings),
                self.arguments.rate, self.arguments.seconds,
            )  # fmt: skip
        self.found["webhooks"] = deeds.figures() | {
            "memory_mib": watch.memory(), "cpu_s": watch.cpu(), "round_steps": watch.rounds(),
            "bytes": len(json.dumps(self.payload)),
        }  # fmt: skip

    def lost(self) -> None:
        """Compare what was submitted with Label Studio, and with the labels of the next round.

        They are read by the step that a round begins with, on top of the last round's.
        """
        tasks, annotations = self.service.studio.totals(self.project.number)
        submitted = {task for deeds in self.deeds for task, _ in deeds.submitted}
        folder, began = self.project.folder, time.monotonic()
        last = next(
            (r for n in reversed(folder.rounds()) if (r := folder.round(n).load(DATASET))), None
        )
        labels = sync(self.project, self.project.in_studio(), folder.round(_CHECK), last).labels
        missing = submitted - {label.task for label in labels}
        self.found["lost"] = {
            "tasks": tasks, "annotations_in_label_studio": annotations,
            "submitted": sum(len(deeds.submitted) for deeds in self.deeds),
            "labels": len(labels), "missing": len(missing), "sync_seconds": _since(began),
            "rounds": len(folder.rounds()) - 1,
        }  # fmt: skip

    def _annotate(self, name: str, rate: float, seconds: float) -> Deeds:
        deeds = annotate(self.people, rate, seconds)
        self.deeds.append(deeds)
        self.found[name] = {"asked_per_second": rate} | deeds.figures()
        return deeds

    def _trains(self) -> bool:
        return bool(self.service.schedule.length(GPU)[1])

    def _recorded(self) -> dict[str, Any]:
        """What Label Studio sends of one submission."""
        with _recorder() as (url, bodies):
            asked = {"project": self.project.number, "url": url, "send_payload": True,
                     "send_for_all_actions": True, "is_active": True}  # fmt: skip
            hook = self.service.studio.request("POST", "api/webhooks/", json=asked)
            self.first.label_next()

            def created() -> list[dict[str, Any]]:
                return [body for body in bodies if body.get("action") == "ANNOTATION_CREATED"]

            if not wait_for(created, 30):
                raise StartError("Label Studio sent no webhook within 30 s")
            self.service.studio.request("DELETE", f"api/webhooks/{hook['id']}/")
            payload: dict[str, Any] = created()[0]
            return payload

    @property
    def _url(self) -> str:
        return self.stack.backend_url

    def _pids(self) -> dict[str, int]:
        return {name: pid for name, pid in self.group.pids().items() if name != "postgresql"}


@contextmanager
def _recorder() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An address, and the JSON that is posted to it."""
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", bodies
        server.shutdown()


def _since(began: float) -> float:
    return round(time.monotonic() - began, 1)


def _rows(found: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(found, dict):
        for key, value in found.items():
            yield from _rows(value, f"{name} {key}".strip())
    else:
        yield name, f"{found}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, run, print and write."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=summary, epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--rate", type=float, default=20.0, help="submissions a second, in all")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--alone", type=float, default=60.0, help="0: not at all")
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument(
        "--copy", action="store_true",
        help="copy the tasks of the first import within PostgreSQL: spares minutes of CPU",
    )  # fmt: skip
    parser.add_argument("--home", type=Path, default=default_home())
    parser.add_argument("--output", type=Path)
    parser.add_argument("--keep", action="store_true", help="the temporary folder, with the logs")
    asked = parser.parse_args(arguments)
    stop_on_signals()
    folder = Path(tempfile.mkdtemp(prefix="nextslice-load-"))
    folder.chmod(0o755)  # PostgreSQL runs as another user below it
    began = time.monotonic()

    def step(text: str) -> None:
        print(f"{time.monotonic() - began:7.0f} s  {text}", flush=True)

    try:
        with ProcessGroup(folder / "logs") as group:
            stack, postgresql = start_site(
                group, folder, asked.home, asked.database, asked.annotators, asked.tasks, step
            )
            run = Run(group, stack, postgresql, asked)
            run.found = {"command": vars(asked) | {"home": ""}, "load_average": os.getloadavg()}
            for phase in run.phases:
                step(phase.__name__)
                phase()
                _write(asked.output, run.found)
            step("done")
    finally:
        if asked.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    for name, value in _rows(run.found):
        print(f"{name:60}{value}")


def _write(output: Path | None, found: dict[str, Any]) -> None:
    if output is not None:
        output.write_text(json.dumps(found, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
