"""What killed processes have left where only nextslice writes: removed when a process begins."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from ml_backend.disk_cache import FILES
from ml_backend.durable import sweep, sweep_scratch
from ml_backend.rounds.store import Store
from ml_backend.settings import Settings

__all__ = ["remove_leftovers", "sweep_leftovers"]

logger = logging.getLogger(__name__)


def sweep_leftovers(settings: Settings) -> threading.Thread:
    """`remove_leftovers` beside what begins: a large store on a slow disk takes its time."""
    thread = threading.Thread(target=remove_leftovers, args=(settings,), daemon=True)
    thread.start()
    return thread


def remove_leftovers(settings: Settings) -> None:
    """Half-written files of the store and the cache, and temporary folders, whose process is gone.

    Nothing that another process may still write. A store that is no folder has none.
    """
    try:
        store = Store(settings.store)
        roots = [settings.cache_dir / FILES, *([Path(store.root)] if store.local else [])]
        removed = [path for root in roots for path in sweep(root)] + sweep_scratch()
    except Exception:  # the process that begins is worth more than a clean disk
        logger.exception("what killed processes have left is not removed")
        return
    if removed:
        logger.info("removed what %d killed writers have left: %s and the like", len(removed),
                    removed[0])  # fmt: skip
