"""The Flask application: ``gunicorn "ml_backend.app:create_app()"``."""

from __future__ import annotations

from flask import Flask

from ml_backend.api.dashboard import serve_dashboard
from ml_backend.api.description import description
from ml_backend.api.drags import Drags
from ml_backend.api.limits import limit_bodies
from ml_backend.api.ome_zarr import serve_ome_zarr
from ml_backend.api.protocol import protocol
from ml_backend.api.serving import Serving
from ml_backend.api.slices import serve_slices
from ml_backend.api.status import serve_status
from ml_backend.api.watching import watch
from ml_backend.rounds.leftovers import sweep_leftovers
from ml_backend.rounds.service import Service
from ml_backend.settings import Settings, configure_logging, load_settings

__all__ = ["create_app"]


def create_app(settings: Settings | None = None) -> Flask:
    """The backend for ``settings`` (default: the environment's). Imports no torch by itself."""
    settings = settings or load_settings()
    configure_logging(settings.log_level)
    app = Flask("nextslice", static_folder=None)
    sweep_leftovers(settings)
    service = Service(settings)
    serving = app.extensions["nextslice"] = Serving(service)
    app.extensions["nextslice drags"] = Drags(serving)
    limit_bodies(app)
    app.register_blueprint(protocol)
    serve_slices(app, service)
    watch(app, service, serving.metrics)
    serve_status(app, service)
    serve_dashboard(app, service)
    serve_ome_zarr(app, service)
    app.register_blueprint(description(settings))
    return app
