"""gunicorn's own messages in the format of ours: ``--logger-class ml_backend.api.server_log.…``."""

from __future__ import annotations

from typing import Any

from gunicorn.glogging import Logger

from ml_backend.logs import JsonLines
from ml_backend.settings import asked_log_format

__all__ = ["ServerLog"]


class ServerLog(Logger):  # type: ignore[misc]
    """JSON where NEXTSLICE_LOG_FORMAT asks for it; else gunicorn's own format."""

    def setup(self, cfg: Any) -> None:
        """As gunicorn does, at the start and when it reads its configuration anew."""
        super().setup(cfg)
        if asked_log_format() == "json":
            for handler in self.error_log.handlers:
                handler.setFormatter(JsonLines())
