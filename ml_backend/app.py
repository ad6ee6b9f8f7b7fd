"""The Flask application: ``gunicorn "ml_backend.app:create_app()"``."""

from __future__ import annotations

import logging

from flask import Flask

from ml_backend.api.protocol import protocol
from ml_backend.api.serving import Serving
from ml_backend.rounds.service import Service
from ml_backend.settings import Settings, load_settings

__all__ = ["configure_logging", "create_app"]


def configure_logging(level: str) -> None:
    """One line a message, with time and place, to standard error."""
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    # One line per HTTP request of the SDK drowns what matters.
    logging.getLogger("httpx").setLevel(logging.WARNING)


def create_app(settings: Settings | None = None) -> Flask:
    """The backend for ``settings`` (default: the environment's). Imports no torch by itself."""
    settings = settings or load_settings()
    configure_logging(settings.log_level)
    app = Flask("nextslice")
    app.extensions["nextslice"] = Serving(Service(settings))
    app.register_blueprint(protocol)
    return app
