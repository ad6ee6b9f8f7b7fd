"""Small pictures of how uncertain the published network is, beside the round that drew its masks.

They are for people: the dashboard shows them. The gpu worker keeps them as it draws the masks of a
queue, of the same forward; of what joins the queue later there is none.
"""

from __future__ import annotations

import logging

from al_strategies.learner import Prediction
from ml_backend.rounds.artefacts import UNCERTAINTY
from ml_backend.rounds.records import Published
from ml_backend.rounds.store import Folder, ProjectStore, StoreFault

__all__ = ["MOST_PICTURES", "KeptPictures", "kept_tasks", "picture_name"]

logger = logging.getLogger(__name__)

MOST_PICTURES = 512
"""Of a version: 34 MB at most, a picture being 67 kB where it is noise. Queues that are kept longer
have none behind that place."""


def picture_name(version: str, task: int) -> str:
    """What the picture of ``task`` by the network of ``version`` is called in `UNCERTAINTY`."""
    return f"{version}/{task}"


class KeptPictures:
    """Keeps those of one version in ``folder``, a round's. A store that refuses one gets no more of
    them: nothing depends on them."""

    def __init__(self, folder: Folder, version: str) -> None:
        self._folder, self._version = folder, version
        self._left = MOST_PICTURES

    def keep(self, task: int, prediction: Prediction) -> None:
        """Keep the picture that came with ``prediction``, if one did."""
        if prediction.uncertainty is None or self._left < 1:
            return
        self._left -= 1
        try:
            name = picture_name(self._version, task)
            self._folder.save(UNCERTAINTY[name], prediction.uncertainty)
        except StoreFault as error:
            self._left = 0
            logger.warning("no more pictures of what is uncertain are kept: %s", error)


def kept_tasks(project: ProjectStore, published: Published | None) -> set[int]:
    """The tasks of which there is a picture by the network that is served. Raises nothing that the
    store does not: one listing."""
    if published is None or published.weights is None:
        return set()
    folder = project.round(published.round)
    names = folder.store.names(f"{folder.path}/{UNCERTAINTY.folder}/{published.model_version}")
    tasks = (name.removesuffix(".png") for name in names)
    return {int(task) for task in tasks if task.isdecimal()}
