"""Counters on vLLM's own metrics endpoint, where prometheus_client is installed."""

from typing import Any

NAMES = {
    "tokens": "Tokens of requests with a spec",
    "latent": "Tokens that were fed as a mixture",
    "discrete": "Tokens that were fed as themselves",
    "switches": "Changes between mixtures and tokens, in either direction",
    "forced": "Tokens that a method decided",
    "invalid": "Steps whose logits could not be used",
    "cold_stops": "Ends of thinking that Cold Stop forced",
    "refusals": "Requests refused because of their spec",
}

GAUGES = {
    "slots_in_use": "Requests with a spec that have a slot, as of the last step",
    "history_pages_in_use": "Pages of concept tokens kept for a replay, as of the last step",
}

_GAUGES: dict[str, Any] = {}
_COUNTERS: dict[str, Any] = {}


def _counter(name: str) -> Any:
    if name not in _COUNTERS:
        try:
            from prometheus_client import Counter
        except ImportError:
            _COUNTERS[name] = None
        else:
            _COUNTERS[name] = Counter(f"tokenlens_{name}", NAMES[name])
    return _COUNTERS[name]


def count(name: str, amount: int = 1) -> None:
    """Add to one counter."""
    counter = _counter(name)
    if counter is not None and amount > 0:
        counter.inc(amount)


def _gauge(name: str) -> Any:
    if name not in _GAUGES:
        try:
            from prometheus_client import Gauge
        except ImportError:
            _GAUGES[name] = None
        else:
            _GAUGES[name] = Gauge(f"tokenlens_{name}", GAUGES[name])
    return _GAUGES[name]


def observe(grown: list[int], usage: list[int], switches: int) -> None:
    """Add what one report added to its request's totals, in the order of ``traces.COUNTS``.

    ``usage`` is how many slots and pages the worker had taken, in the order of ``GAUGES``;
    ``switches`` how often the request changed between mixtures and tokens.
    """
    for gauge, amount in zip(map(_gauge, GAUGES), usage):
        if gauge is not None:
            gauge.set(amount)
    tokens, _, latent, forced, invalid, cold_stops = grown
    for name, amount in (
        ("tokens", tokens),
        ("latent", latent),
        ("discrete", tokens - latent),
        ("switches", switches),
        ("forced", forced),
        ("invalid", invalid),
        ("cold_stops", cold_stops),
    ):
        count(name, amount)
