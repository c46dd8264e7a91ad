"""What Prometheus reads at `/metrics`."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

STAGES = ("decode", "queue", "model")
"""Decoding with waiting for a decode worker; waiting for the model; the model's part for a whole
batch, masks included."""


class Metrics:
    """Figures of one server, in a registry of their own: several servers in a process don't share
    them.

    Args:
        waiting: how many requests wait for the model now.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "clip2sam_requests",
            "Requests that were answered.",
            ["path", "status"],
            registry=self.registry,
        )
        self._images = Counter(
            "clip2sam_images", "Images that were segmented.", registry=self.registry
        )
        self._batch = Histogram(
            "clip2sam_batch_size",
            "Requests that went through the model together.",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "clip2sam_seconds",
            "Seconds in a stage: decode and queue of each request, model of each batch.",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        for stage in STAGES:  # there from the beginning, with 0
            self._seconds.labels(stage)
        Gauge(
            "clip2sam_queue_length", "Requests that wait for the model.", registry=self.registry
        ).set_function(waiting)

    def answered(self, path: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(path, str(status)).inc()

    def took(self, stage: str, seconds: float) -> None:
        """Note what one of `STAGES` took."""
        self._seconds.labels(stage).observe(seconds)

    def batch(self, size: int, images: int) -> None:
        """Note a batch, and how many of its images have a result."""
        self._batch.observe(size)
        self._images.inc(images)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)
