"""What the server counts, in the format of Prometheus."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tokenlens.routing.breaker import Breaker
from tokenlens.routing.settings import Role
from tokenlens.routing.trace import RouteTrace

BREAKER_STATES = {"closed": 0, "half_open": 1, "open": 2}


class Metrics:
    """One server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry}
        prefix = "tokenlens_route"
        self.requests = Counter(f"{prefix}_requests", "Requests by outcome", ["outcome"], **own)
        self.steps = Counter(f"{prefix}_steps", "Steps in which a model wrote", ["model"], **own)
        self.tokens = Counter(
            f"{prefix}_tokens", "Tokens: kept are in an answer", ["model", "kind"], **own
        )
        self.fallbacks = Counter(f"{prefix}_fallbacks", "Steps that the other model took", **own)
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

    def count(self, trace: RouteTrace) -> None:
        """Count a request that came to its end."""
        for role, usage in trace.usage.items():
            self.steps.labels(role).inc(usage.steps)
            self.tokens.labels(role, "kept").inc(usage.tokens)
            self.tokens.labels(role, "discarded").inc(usage.discarded_tokens)
        self.fallbacks.inc(sum(step.fallback is not None for step in trace.steps))

    def text(self, breakers: dict[Role, Breaker]) -> bytes:
        """Everything, as text."""
        for role, breaker in breakers.items():
            self.breakers.labels(role).set(BREAKER_STATES[breaker.state])
        return generate_latest(self.registry)
