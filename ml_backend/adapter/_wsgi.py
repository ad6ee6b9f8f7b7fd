"""The server that ``label-studio-ml start <site-packages>/ml_backend/adapter`` runs.

It is upstream's Flask application with `NextsliceModel` behind its routes, and with what those
routes lack made good:

- upstream passes on ANNOTATION_CREATED, ANNOTATION_UPDATED, START_TRAINING and an
  ANNOTATION_DELETED that Label Studio never sends. The list is widened to the events that nextslice
  looks at, deletions and bulk imports among them. Whatever is lost all the same is found by
  reconcile, within NEXTSLICE_RECONCILE_S;
- /versions, /ready and what /metrics tells are added;
- basic auth lets Label Studio's webhook in by its secret header (upstream answers it 401).

Settings come from the environment, as for every part of nextslice, and Redis and the two workers
run as usual. What Label Studio never sends, a webhook without a project, is answered 500 where
`ml_backend.app` answers 400.
"""

from __future__ import annotations

import argparse
import os
import sys

from flask import Flask, Response, request

from ml_backend.api.auth import refuse
from ml_backend.api.drags import Drags
from ml_backend.api.hints import COUNTED, TRAIN_NOW
from ml_backend.api.limits import limit_bodies
from ml_backend.api.protocol import versions
from ml_backend.api.server import gunicorn_argv
from ml_backend.api.serving import Serving
from ml_backend.api.slices import serve_slices, slices
from ml_backend.api.watching import metrics, watch
from ml_backend.rounds.service import Service
from ml_backend.settings import asked_log_level, configure_logging, load_settings

__all__ = ["create_app", "main"]


def create_app() -> Flask:
    """Upstream's application, serving nextslice. Upstream has one per process: call this once."""
    settings = load_settings()
    configure_logging(settings.log_level)
    # Imported, upstream makes an SQLite file in MODEL_DIR, by default the working directory, which
    # may be read-only. We keep nothing in it. (Its own command leaves one too.)
    os.environ.setdefault("MODEL_DIR", str(settings.cache_dir))
    from label_studio_ml import api as upstream

    from ml_backend.adapter.model import NextsliceModel

    app: Flask = upstream.init_app(NextsliceModel)
    limit_bodies(app)
    upstream.TRAIN_EVENTS = (*sorted(COUNTED), TRAIN_NOW)
    upstream.BASIC_AUTH = None  # `_authorise` takes its place

    @app.before_request
    def _authorise() -> Response | None:
        # A slice's signature is its authorisation: browsers fetch it without ours.
        return None if request.blueprint == slices.name else refuse(settings, request)

    service = Service(settings)
    serving = app.extensions["nextslice"] = Serving(service)
    app.extensions["nextslice drags"] = Drags(serving)
    serve_slices(app, service)
    watch(app, service, serving.metrics)
    app.view_functions["metrics"] = metrics  # upstream's own answers {}
    app.add_url_rule("/versions", view_func=versions)
    return app


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port < 1 << 16:
        raise argparse.ArgumentTypeError(f"found {text}, expected a port from 1 to 65535")
    return port


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="nextslice, served by label-studio-ml")
    parser.add_argument("-p", "--port", type=_port, default=9090)
    # as upstream; without credentials the worker refuses it
    parser.add_argument("--host", default="0.0.0.0")  # nosec
    parser.add_argument("--log-level", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    parser.add_argument("--basic-auth-user", help="better: BASIC_AUTH_USER, for the workers too")
    parser.add_argument("--basic-auth-pass", help="better: BASIC_AUTH_PASS, for the workers too")
    return parser.parse_args()


def main() -> None:
    """Become gunicorn, as ``nextslice up`` runs it: one process, threads, no preload.

    Upstream's own start is Flask's development server.
    """
    given = _arguments()
    for name in ("log_level", "basic_auth_user", "basic_auth_pass"):
        value = getattr(given, name)
        if value:
            os.environ[f"NEXTSLICE_{name.upper()}"] = value
    address, application = f"{given.host}:{given.port}", "ml_backend.adapter._wsgi:app"
    argv = gunicorn_argv(address, application, asked_log_level())
    os.execv(sys.executable, argv)  # nosec B606  # no shell, our own arguments


if __name__ == "__main__":
    main()
else:  # a WSGI server imports us: gunicorn ml_backend.adapter._wsgi:app
    app = create_app()
