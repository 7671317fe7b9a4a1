"""What some methods need of an engine, and one refusal for engines that do not have it.

Knows no engine: a room says what it hosts.
"""

from collections.abc import Collection

from tokenlens.spec.decoding import DecodingSpec
from tokenlens.spec.errors import SpecError

NEEDS = {
    "dense": "a mixture of the whole vocabulary (a product with the whole embedding table)",
    "hidden_state": "the model's last hidden state at each step",
    "embedding_noise": "noise on the embeddings that are fed",
}
"""Every need, in words."""


def needs_of(spec: DecodingSpec) -> frozenset[str]:
    """What a spec needs beyond concept tokens."""
    return frozenset(need for config in spec.methods for need in config.needs())


def refuse_needs(
    spec: DecodingSpec, engine: str, hosted: Collection[str] = (), why: str = ""
) -> None:
    """Refuse a spec that needs what an engine does not host.

    Parameters
    ----------
    hosted
        The needs that the engine hosts, none by default.
    why
        The engine's reason, if it has a particular one.

    Raises
    ------
    SpecError
        Names the field, the need, and the way out.
    """
    for config in spec.methods:
        for need, (field, value, way_out) in config.needs().items():
            if need not in hosted:
                reason = f"{engine} does not host {NEEDS[need]} here{': ' + why if why else ''}"
                raise SpecError.of(f"{config.method}.{field}", value, f"{way_out}; {reason}")
