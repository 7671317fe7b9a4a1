"""Where the seed of a request's noise comes from if its spec does not say. Knows no engine.

Whoever admits a request finds the seed: the engine's own for that request, else a drawn one. It is
found once, in one process, and travels with the request, so that every rank and every life of the
request has the same noise.
"""

import secrets
from hashlib import blake2b

from tokenlens.spec.decoding import MAX_SEED, DecodingSpec


def find_seed(engine_seed: int | None = None) -> int:
    """A seed for a request that has none: the engine's, as it stands, or one that is drawn."""
    return secrets.randbits(63) if engine_seed is None else int(engine_seed) & MAX_SEED


def seed_of_sample(seed: int, index: int) -> int:
    """The seed of the n-th of several samples of one request; the first has the seed itself."""
    if index == 0:
        return seed
    digest = blake2b(f"sample:{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") & MAX_SEED


def is_open(spec: DecodingSpec) -> bool:
    """Whether a spec has noise, and leaves its seed to the engine."""
    return spec.seed is None and spec.uses_seed


def with_seed(spec: DecodingSpec, seed: int, index: int = 0) -> DecodingSpec:
    """The spec of the n-th sample: asked for alone, it has that sample's noise."""
    return spec.model_copy(update={"seed": seed_of_sample(seed, index)})
