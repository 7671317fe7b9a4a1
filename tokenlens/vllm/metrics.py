"""What an engine's front end counts, on the collector that all engines share."""

from tokenlens.metrics import GAUGES, Grown, collector


def count(name: str, amount: int = 1, *, engine: str = "vllm") -> None:
    """Add to one counter."""
    collector(engine).count(name, amount)


def observe(grown: list[int], usage: list[int], switches: int, *, engine: str = "vllm") -> None:
    """Add what one report added to its request's totals, in the order of ``traces.COUNTS``.

    ``usage`` is how many slots and pages the worker had taken, in the order of ``GAUGES``;
    ``switches`` how often the request changed between mixtures and tokens.
    """
    shared = collector(engine)
    for name, amount in zip(GAUGES, usage):
        shared.set(name, amount)
    tokens, _, latent, forced, invalid, cold_stops, _ = grown
    shared.add(Grown(tokens, latent, switches, forced, invalid, cold_stops))
