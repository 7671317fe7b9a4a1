"""The ``generate()`` call that asks for a list of processors, found in the calling thread's stack.

Its settings are passed to nobody, but they decide whether a spec can be carried out. It need not be
transformers' own function: what is looked for is whoever lets transformers put a list of processors
together, and has prepared the settings for it.
"""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

from tokenlens.hf.prompts import Prompts

ASKS = "_get_logits_processor"
"""The method of transformers that iterates a user's list, once a call and before the prompt."""

NEAR = 4
"""Frames that are looked at between it and the list's ``__iter__``, and outside of it."""

_GENERATE = inspect.unwrap(GenerationMixin.generate).__code__
# Functions that were found to be generate() calls, by identity: comparing code is slow.
_CODES: dict[int, CodeType] = {id(_GENERATE): _GENERATE}


@dataclass(frozen=True)
class Call:
    """One ``generate()`` call.

    Attributes
    ----------
    key
        ``id`` of its frame. Unique while its run lives, because nothing but it keeps that alive.
    arguments
        Its local variables, and what it hands on: ``self``, ``generation_config``,
        ``model_kwargs``, ``input_ids_seq_length``.
    stock
        It is transformers' own function, and its loop is.
    """

    key: int
    arguments: Mapping[str, Any]
    stock: bool = False

    @property
    def prompts(self) -> Prompts:
        """What it says of its prompts beside their ids; transformers drops an idle mask."""
        given = self.arguments.get("model_kwargs") or {}
        mask, embedded = given.get("attention_mask"), given.get("inputs_embeds")
        return Prompts(
            mask if isinstance(mask, Tensor) else None,
            embedded.shape[1] if isinstance(embedded, Tensor) else None,
        )

    @property
    def hands_over_logits(self) -> bool:
        """Its loop copies each step's logits for the processors, and nobody reads that copy later.

        It does where the raw logits are returned; a loop of somebody else's may.
        """
        config = self.arguments.get("generation_config")
        return self.stock and getattr(config, "output_logits", True) is not True

    @property
    def shows_no_ids(self) -> bool:
        """The prompts came as embeddings alone."""
        known = self.arguments.get("input_ids_seq_length")
        return self.prompts.embedded_length is not None and not known


def calling() -> Call | None:
    """The call that is putting its processors together; ``None`` outside of one."""
    asks = _asking(sys._getframe(1))
    if asks is None or asks.f_back is None:
        return None
    own = variables(asks)
    config = own.get("generation_config")
    found, frame = asks.f_back, asks.f_back.f_back
    for _ in range(NEAR):
        # A frame outside of it that has the very same settings belongs to the call as well.
        if frame is None:
            break
        named = "generation_config" in frame.f_code.co_varnames
        if named and config is not None and variables(frame).get("generation_config") is config:
            found = frame
        frame = frame.f_back
    _CODES.setdefault(id(found.f_code), found.f_code)
    shared = {
        name: own[name]
        for name in ("self", "generation_config", "model_kwargs", "input_ids_seq_length")
        if own.get(name) is not None
    }
    if not isinstance(config, GenerationConfig):
        shared.pop("generation_config", None)
    arguments = {**variables(found), **shared}
    # A loop of the model's or of the caller's may do anything with the logits.
    loop = getattr(arguments.get("self"), "_sample", None)
    stock = (
        found.f_code is _GENERATE
        and arguments.get("custom_generate") is None
        and getattr(loop, "__func__", None) is GenerationMixin._sample
    )
    return Call(id(found), arguments, stock)


def variables(frame: FrameType) -> dict[str, Any]:
    """A function's variables, of which nothing lives longer for having been looked at."""
    found = frame.f_locals
    copied = dict(found)
    if type(found) is dict and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        # The frame keeps the copy that Python made, and would keep everything in it.
        found.clear()
    return copied


def _asking(frame: FrameType | None) -> FrameType | None:
    for _ in range(NEAR):
        if frame is None or frame.f_code.co_name == ASKS:
            return frame
        frame = frame.f_back
    return None


def calls() -> list[int]:
    """``id`` of the frames of the calls that are under way in this thread, the innermost first."""
    found = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if id(frame.f_code) in _CODES:
            found.append(id(frame))
        frame = frame.f_back
    return found


def innermost() -> int | None:
    """``id`` of the frame of the innermost call; asked at every step."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if id(frame.f_code) in _CODES:
            return id(frame)
        frame = frame.f_back
    return None
