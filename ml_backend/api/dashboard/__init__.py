"""The dashboard: pages at ``/`` and ``/projects/N``, rendered here, over the looks of `api.status`.

Nothing is loaded from another host and nothing is built: templates, one style sheet and one script
are files of this package. Without the script every page works; it only keeps them fresh.
"""

from ml_backend.api.dashboard.pages import serve_dashboard

__all__ = ["serve_dashboard"]
