"""One Prometheus collector for every engine and the router, where prometheus_client is installed.

An engine's own endpoint shows it, as all metrics of a process share a registry; without
prometheus_client every call does nothing. Knows no engine: adapters report numbers.
"""

from collections.abc import Mapping
from itertools import groupby
from typing import Any, NamedTuple

from tokenlens import __version__
from tokenlens.trace import Trace, TraceCounts
from tokenlens.trace.reports import TRIP

COUNTERS = {
    "tokens": "Tokens of requests with a spec",
    "latent": "Tokens that were fed as a mixture",
    "discrete": "Tokens that were fed as themselves",
    "mode_changes": "Changes between mixtures and tokens, in either direction",
    "gate_switches": "Switches of a gate from latent to discrete",
    "forced": "Tokens that a method decided",
    "invalid": "Steps whose logits could not be used",
    "cold_stops": "Ends of thinking that Cold Stop forced",
    "shifted": "Tokens that were read with a vector behind a decoder layer",
    "never_opened": "Requests with a latent method or a budget whose thinking never opened",
    "refusals": "Requests refused because of their spec",
    "route_fallbacks": "Failures of a routed model that put the other one in",
    "steer_probes": "Probes and verdicts of steered requests",
    "steer_forks": "Lines and trials of steered requests",
    "steer_injected_tokens": "Tokens of steered requests that no model wrote",
    "checked_texts": "Texts of steered requests whose ids were held to their text's encoding",
    "uncanonical_texts": "Of these, texts whose own encoding is other ids",
}
ROUTED = {
    "routed_tokens": "Tokens that a router's model wrote into the text",
    "routed_discarded_tokens": "Probes and drafts of a router's model that were thrown away",
    "routed_steps": "Steps that a router gave to a model",
}
"""Counters with the model's role, small or large, as a label."""

OLD = {"switches": "The old name of tokenlens_mode_changes_total, for one release"}
"""Counters that the next release does not have."""

COUNTED = "What methods count that are not of this library, by the name that they declare"
"""The counter ``tokenlens_counted``, with the name as a label."""

GAUGES = {
    "slots_in_use": "Requests with a spec that have a slot, as of the last step with one",
    "history_pages_in_use": "Pages of concept tokens kept for a replay, as of the same step",
}
HISTOGRAMS = {
    "entropy_nats": ("Entropy of the steps of full traces", (0.01, 0.1, 0.3, 0.6, 1, 1.5, 2, 3, 5)),
    "latent_run_tokens": ("Latent steps in a row, in full traces", (1, 2, 4, 8, 16, 64, 256, 1024)),
}


class Grown(NamedTuple):
    """What was added to a request's totals since it was looked at last."""

    tokens: int = 0
    latent: int = 0
    mode_changes: int = 0
    gate_switches: int = 0
    forced: int = 0
    invalid: int = 0
    cold_stops: int = 0
    shifted: int = 0
    others: Mapping[str, int] = {}

    @classmethod
    def of(cls, counts: Mapping[str, int]) -> "Grown":
        """Of totals by the names that traces give them."""
        known = {*TraceCounts.model_fields, *TRIP}
        others = {name: count for name, count in counts.items() if name not in known}
        return cls(
            tokens=counts["tokens"],
            latent=counts["latent_steps"],
            mode_changes=counts.get("mode_changes", 0),
            gate_switches=counts.get("gate_switches", 0),
            forced=counts["forced_steps"],
            invalid=counts["invalid_steps"],
            cold_stops=counts.get("cold_stops", 0),
            shifted=counts.get("shifted_steps", 0),
            others=others,
        )


class Collector:
    """The metrics of one process.

    Parameters
    ----------
    engine
        ``hf``, ``vllm``, ``sglang`` or ``router``; a label of ``tokenlens_build_info``.
    registry
        A ``prometheus_client`` registry; ``None`` is the process's own.
    """

    def __init__(self, engine: str, registry: Any = None) -> None:
        self._found: dict[str, Any] = {}
        try:
            import prometheus_client as client
        except ImportError:
            return
        into = {} if registry is None else {"registry": registry}
        found = self._found
        for name, text in (COUNTERS | OLD).items():
            found[name] = client.Counter(f"tokenlens_{name}", text, **into)
        for name, text in ROUTED.items():
            found[name] = client.Counter(f"tokenlens_{name}", text, ["model"], **into)
        found["counted"] = client.Counter("tokenlens_counted", COUNTED, ["name"], **into)
        for name, text in GAUGES.items():
            # Of several front ends of one engine, the one that heard of it last.
            found[name] = client.Gauge(
                f"tokenlens_{name}", text, multiprocess_mode="mostrecent", **into
            )
        for name, (text, buckets) in HISTOGRAMS.items():
            found[name] = client.Histogram(f"tokenlens_{name}", text, buckets=buckets, **into)
        labels = ["engine", "version"]
        # A gauge: what the engines' multiprocess mode can show.
        info = client.Gauge("tokenlens_build_info", "What runs here", labels, **into)
        info.labels(engine, __version__).set(1)

    def count(self, name: str, amount: int = 1, *, model: str | None = None) -> None:
        """Add to a counter of :data:`COUNTERS`, or with a ``model`` to one of :data:`ROUTED`."""
        counter = self._found.get(name)
        if counter is not None and amount > 0:
            (counter if model is None else counter.labels(model)).inc(amount)

    def set(self, name: str, amount: float) -> None:
        """Set one of :data:`GAUGES`."""
        gauge = self._found.get(name)
        if gauge is not None:
            gauge.set(amount)

    def add(self, grown: Grown) -> None:
        """Add what a step, or several, added to a request's totals."""
        for name, amount in grown._replace(others={})._asdict().items():
            if amount:
                self.count(name, amount)
        counted = self._found.get("counted")
        for name, amount in grown.others.items():
            if counted is not None and amount > 0:
                counted.labels(name).inc(amount)
        self.count("discrete", grown.tokens - grown.latent)
        self.count("switches", grown.mode_changes)

    def trace(self, trace: Trace) -> None:
        """Add a finished trace: its totals, and its steps to the histograms.

        Where an engine reports while it decodes, only the steps: :meth:`steps`.
        """
        counts = trace.counts.model_dump()
        self.add(Grown.of(counts | counts.pop("others")))
        self.count("never_opened", int(trace.never_opened))
        self.steps(trace)

    def steps(self, trace: Trace) -> None:
        """Add the steps of a full trace to the histograms."""
        entropy, runs = self._found.get("entropy_nats"), self._found.get("latent_run_tokens")
        if entropy is None or runs is None:
            return
        for step in trace.steps:
            entropy.observe(step.entropy)
        for latent, run in groupby(trace.steps, key=lambda step: step.latent):
            if latent:
                runs.observe(sum(1 for _ in run))


_COLLECTORS: list[Collector] = []


def collector(engine: str) -> Collector:
    """The process's collector; the first call makes it, and names its engine."""
    # A registry takes a name once.
    if not _COLLECTORS:
        _COLLECTORS.append(Collector(engine))
    return _COLLECTORS[0]
