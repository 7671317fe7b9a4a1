"""Columns of the state: what a field is, the fields that all methods share, and the phases.

Knows no tensors: a slot table makes the columns, a step's rows read them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

MAX_FORCED_TOKENS = 32
"""The longest sequence that a method may force."""


class Phase(IntEnum):
    """Where a request is. ``PROMPT`` lasts until the model opens its thinking."""

    PROMPT = 0
    THINKING = 1
    ANSWER = 2


Value = float | int | bool | Sequence[int]


@dataclass(frozen=True, eq=False)
class Field:
    """One named column (or run of columns) of the state, the same for every slot.

    A wide field lies in a table of its own, which a step reads only if a hook asks for it.
    ``infinite`` allows infinities: a bound that is off.
    ``fixed`` promises that hooks do not assign it: it is what the request came with, of which no
    state is kept to go back to.
    """

    name: str
    kind: Literal["int", "float", "bool"]
    default: float | int | bool = 0
    size: int = 1
    fixed: bool = False
    infinite: bool = False


# Where the request is.
PHASE = Field("phase", "int", Phase.PROMPT)
POSITION = Field("position", "int")  # of the token that is decided next
GENERATED = Field("generated", "int")
THINKING_TOKENS = Field("thinking_tokens", "int")
PROMPT_THINKING = Field("prompt_thinking", "int")  # thinking tokens that the prompt holds
# of them, those of earlier blocks, where each block of thinking is counted by itself
EARLIER_THINKING = Field("earlier_thinking", "int")
ALIVE = Field("alive", "bool", True)  # no end-of-text token has been committed
SEED = Field("seed", "int", fixed=True)
EOS_IDS = Field("eos_ids", "int", -1, size=8, fixed=True)
# the canonical end of thinking
END_IDS = Field("end_ids", "int", -1, size=MAX_FORCED_TOKENS, fixed=True)
END_LENGTH = Field("end_length", "int", fixed=True)
FORCE_IDS = Field("force_ids", "int", -1, size=MAX_FORCED_TOKENS)
FORCE_LENGTH = Field("force_length", "int")  # 0 = nothing is being forced
FORCE_AT = Field("force_at", "int")
# What the request's latent method asks of the logits: a request has one at most.
INVERSE_TEMPERATURE = Field("ask.inverse_temperature", "float", 1.0, fixed=True)
TOP_K = Field("ask.top_k", "int", fixed=True)
TOP_P = Field("ask.top_p", "float", 1.0, fixed=True)
MIN_P = Field("ask.min_p", "float", fixed=True)
MAX_ENTRIES = Field("ask.max_entries", "int", 1, fixed=True)
NOISE_TEMPERATURE = Field("ask.noise_temperature", "float", fixed=True)
# Published quirks: mixtures are fed after the end of thinking too.
ANYWHERE = Field("feed.anywhere", "bool", False)
# The engine's vector (a product with the whole table, a hidden state) and how much of it is fed.
DENSE = Field("feed.dense", "bool", False)
BASE_WEIGHT = Field("feed.base_weight", "float")
# Of the Gaussian noise on what is fed, in units of the embedding's root mean square.
NOISE_SCALE = Field("feed.noise_scale", "float")
# Of the step's noise, for trainers; 0 where there is none.
LOG_PROBABILITY = Field("proposal.log_probability", "float")

# Totals of a request
LATENT_STEPS = Field("count.latent_steps", "int")
FORCED_STEPS = Field("count.forced_steps", "int")
INVALID_STEPS = Field("count.invalid_steps", "int")

MAX_ANCHORS = 3
"""The last entries of a concept token, which blends use."""

SWITCH = "switch"
"""The record of a gate: 1 where it goes latent at this step, -1 where it goes discrete."""
