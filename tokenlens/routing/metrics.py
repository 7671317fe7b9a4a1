"""What the server counts beside the process's collector, in the format of Prometheus."""

from typing import Any

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from tokenlens.metrics import collector
from tokenlens.routing.breaker import Breaker
from tokenlens.routing.settings import Role

BREAKER_STATES = {"closed": 0, "half_open": 1, "open": 2}


class Metrics:
    """One server's metrics, in a registry of their own.

    What both models wrote is in the process's own registry: routers report it to the collector that
    all engines share (:mod:`tokenlens.metrics`).
    """

    def __init__(self) -> None:
        # Its names are there from the start.
        collector("router")
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry}
        prefix = "tokenlens_route"
        self.requests = Counter(f"{prefix}_requests", "Requests by outcome", ["outcome"], **own)
        self.errors = Counter(
            f"{prefix}_backend_errors", "Failures of a model's server", ["model", "kind"], **own
        )
        self.running = Gauge(f"{prefix}_running", "Requests in the loop", **own)
        self.waiting = Gauge(f"{prefix}_waiting", "Requests in the queue", **own)
        self.breakers = Gauge(
            f"{prefix}_breaker", "0 closed, 1 half open, 2 open", ["model"], **own
        )
        self.seconds = Histogram(
            f"{prefix}_request_seconds", "Duration of a request",
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300), **own,
        )  # fmt: skip

    def failed(self, role: Role, kind: str) -> None:
        """Count a failure of a model's server."""
        self.errors.labels(role, kind).inc()

    def text(self, breakers: dict[Role, Breaker]) -> bytes:
        """Everything, the shared collector's figures included, as text."""
        for role, breaker in breakers.items():
            self.breakers.labels(role).set(BREAKER_STATES[breaker.state])
        return generate_latest(REGISTRY) + generate_latest(self.registry)
