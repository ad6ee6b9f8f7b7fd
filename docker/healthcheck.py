"""Exit 0 when this container's process is in service: ``healthcheck.py backend|control|gpu``.

The backend answers /health; a worker is registered in Redis, under this container's host name, on
the queue of its kind. RQ renews the registration while the worker waits and while it works; it runs
out within eight minutes of the last sign of life.
"""

import socket
import sys
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

URL = "http://127.0.0.1:9090/health"


def backend_answers(url: str = URL) -> bool:
    """Whether the backend answers. 401 is an answer too: basic auth is on. No proxy is asked."""
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=10):
            return True
    except HTTPError as error:
        return error.code == 401


def worker_registered(kind: str) -> bool:
    """Whether a worker of this host is on the queue of ``kind``."""
    from rq import Worker

    from ml_backend.rounds.schedule import Schedule
    from ml_backend.settings import load_settings

    queue = Schedule(load_settings()).queue(kind)
    workers = Worker.all(queue=queue, serializer=queue.serializer)
    return any(worker.hostname == socket.gethostname() for worker in workers)


def main(kind: str) -> int:
    """0 when in service, 1 when not: what Docker takes for an answer."""
    try:
        healthy = backend_answers() if kind == "backend" else worker_registered(kind)
    except Exception as error:
        print(f"{kind}: {type(error).__name__}: {error}")
        return 1
    print(f"{kind}: {'in service' if healthy else 'not in service'}")
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
