"""A worker of another deployment, as Redis knows it."""

from __future__ import annotations

import os
import socket

from rq import Queue, Worker
from rq.serializers import JSONSerializer

from ml_backend.rounds.schedule import STORE_FIELD, STUDIO_FIELD

__all__ = ["OTHER", "OTHER_PID", "register_other"]

OTHER = "lab-a.example"
OTHER_PID = os.getppid()
"""A process of this machine that is there, and is not this one."""


def register_other(queue: Queue) -> Worker:
    """Have a worker for the Label Studio `OTHER` take the jobs of ``queue``."""
    worker = Worker([queue], connection=queue.connection, serializer=JSONSerializer)
    worker.register_birth()
    told = {
        "hostname": socket.gethostname(),
        "pid": OTHER_PID,
        STUDIO_FIELD: OTHER,
        STORE_FIELD: "/a",
    }
    queue.connection.hset(worker.key, mapping=told)
    return worker
