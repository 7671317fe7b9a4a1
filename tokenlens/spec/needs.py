"""What requests need of the step and of the engine, and one refusal of what an engine lacks.

Knows no engine: an adapter passes what its engine hosts.
"""

from enum import Flag, auto
from typing import TYPE_CHECKING

from tokenlens.spec.errors import SpecError

if TYPE_CHECKING:
    from tokenlens.spec.decoding import DecodingSpec


class Need(Flag):
    """What a request needs beyond the engine's own sampling.

    Configs declare what they need of the engine, methods what they need of the core's step. A step
    leaves out what no live request needs, which changes no row's result.
    """

    # Of the engine
    DENSE_MIXTURE = auto()
    """A mixture of the whole vocabulary: a product with the whole embedding table."""
    HIDDEN_STATE = auto()
    """The model's last hidden state at each step."""
    EMBEDDING_NOISE = auto()
    """Gaussian noise on the embeddings that are fed."""

    LAYER_SHIFT = auto()
    """A vector is added to what a decoder layer leaves, at positions that are generated."""
    LAYER_STATES = auto()
    """What every decoder layer leaves at the position whose logits are decided on."""
    PROMPT_STATE = auto()
    """The last hidden state behind the prompt."""
    PROMPT_ROWS = auto()
    """Vectors are fed at places of the prompt."""

    # Of the step
    LATENT = auto()
    """Mixtures may be fed."""
    FORCING = auto()
    """A sequence of tokens may be forced."""
    STATISTICS = auto()
    """The entropy and the maximum probability are read, or recorded."""
    RAW_SIGNALS = auto()
    """The same at temperature 1, beside those at the request's own."""
    BLENDS = auto()
    """Anchors may be fed, in the last entries of the concept tokens."""
    AFTER_THINKING = auto()
    """Mixtures may be fed after the end of thinking, as some authors' code does."""
    SCORES = auto()
    """Steps have scores and a log-probability, for trainers."""
    FULL_TRACE = auto()
    """Every step is recorded, with its logit edits."""
    LONG_MARKERS = auto()
    """A marker of several tokens is followed from state to state."""
    SILENT_END = auto()
    """There is no end marker: thinking ends without a word."""
    BLOCKS = auto()
    """Budgets count each block of thinking by itself."""
    ONE_BLOCK = auto()
    """Thinking that has ended is not opened again."""

    NOTHING = 0
    ENGINE_VECTOR = DENSE_MIXTURE | HIDDEN_STATE
    """Any vector of the engine's own."""
    OF_ENGINE = DENSE_MIXTURE | HIDDEN_STATE | EMBEDDING_NOISE
    """What is fed beside concept tokens, and what it is made of."""
    OF_LAYERS = LAYER_SHIFT | LAYER_STATES | PROMPT_STATE | PROMPT_ROWS
    """What reads or writes the hidden states between decoder layers."""


NEEDS = {
    Need.DENSE_MIXTURE: (
        "a mixture of the whole vocabulary (a product with the whole embedding table)"
    ),
    Need.HIDDEN_STATE: "the model's last hidden state at each step",
    Need.EMBEDDING_NOISE: "noise on the embeddings that are fed",
    Need.LAYER_SHIFT: "a vector that is added behind a decoder layer",
    Need.LAYER_STATES: "the hidden states of all decoder layers at each step",
    Need.PROMPT_ROWS: "vectors of a file at places of the prompt",
    Need.PROMPT_STATE: "the last hidden state behind the prompt",
}
"""What an engine may host, in words."""


def needs_of(spec: "DecodingSpec") -> Need:
    """What a spec needs of the engine beyond concept tokens."""
    found = Need.NOTHING
    for config in spec.methods:
        for need in config.needs():
            found |= need
    return found


def refuse_needs(
    spec: "DecodingSpec", engine: str, hosted: Need = Need.NOTHING, why: str = ""
) -> None:
    """Refuse a spec that needs what an engine does not host.

    Parameters
    ----------
    hosted
        What the engine hosts, nothing by default.
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
