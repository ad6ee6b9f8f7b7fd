"""What this process counts for Prometheus: requests, predictions, images.

One process serves (`server`), so its counts are the service's; they begin at 0 when it starts, as
Prometheus expects. What other processes know is looked up (`outlook`).
"""

from __future__ import annotations

from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from ml_backend import __version__

__all__ = ["DragOutcome", "Metrics", "Outcome"]

Outcome = Literal["masks", "none", "failed", "late", "refused"]
"""Of a task of a /predict: predicted · there is no model for it · the task or its image cannot be
read · Label Studio would not have waited · too many requests were at it already."""
DragOutcome = Literal["changed", "same", "none", "failed"]
"""Regions changed · there was no alternative · no model or no box · something went wrong."""
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 100)
"""To 0.1 s what Label Studio waits for in a submit, to 100 s what it waits for predictions."""


class Metrics:
    """The counts of one application, in a registry of its own. Safe to use from many threads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        build = Gauge("nextslice_build_info", "The version that runs, always 1.", ["version"],
                      registry=self.registry)  # fmt: skip
        build.labels(__version__).set(1)
        self.requests = Counter(
            "nextslice_http_requests", "Requests answered.", ["endpoint", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.durations = Histogram(
            "nextslice_http_request_duration_seconds",
            "From when a request is there whole until its answer is.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._predictions = Counter(
            "nextslice_predictions", "Tasks of /predict, by what became of them.", ["outcome"],
            registry=self.registry,
        )  # fmt: skip
        self.images_failed = Counter(
            "nextslice_images_failed", "Images that could not be read or rendered.", ["endpoint"],
            registry=self.registry,
        )  # fmt: skip
        self._drags = Counter(
            "nextslice_drags", "Drags on opened slices, by what became of them.", ["outcome"],
            registry=self.registry,
        )  # fmt: skip
        for drag in get_args(DragOutcome):
            self._drags.labels(drag)
        for outcome in get_args(Outcome):
            self._predictions.labels(outcome)  # at 0 from the start: a rate can be taken of it
        for endpoint in ("/predict", "/slices"):
            self.images_failed.labels(endpoint)

    def dragged(self, outcome: DragOutcome) -> None:
        """A drag has come to this."""
        self._drags.labels(outcome).inc()

    def predicted(self, outcome: Outcome, tasks: int = 1) -> None:
        """``tasks`` tasks of a /predict have come to this."""
        self._predictions.labels(outcome).inc(tasks)
