"""What ``generate()`` can be asked for that cannot be right with a spec, and why."""

import inspect
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from torch import Tensor
from transformers import GenerationMixin

_GENERATE = inspect.unwrap(GenerationMixin.generate).__code__


class UnsupportedError(NotImplementedError):
    """A setting of ``generate()`` that cannot host a spec. Says why and what to do."""


class ProtocolError(RuntimeError):
    """The loop around the model did not do what ``generate()`` does, so a mixture would be lost."""


def generate_calls() -> list[FrameType]:
    """The ``generate()`` calls that are under way in this thread, the innermost first."""
    found = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _GENERATE:
            found.append(frame)
        frame = frame.f_back
    return found


def innermost_call() -> int | None:
    """``id`` of the frame of the innermost ``generate()`` call; called at every step."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _GENERATE:
            return id(frame)
        frame = frame.f_back
    return None


def arguments_of(calls: Sequence[FrameType]) -> Mapping[str, Any]:
    """The arguments of the innermost ``generate()`` call, or nothing.

    Its settings are not passed to anyone, but they decide whether a spec can be carried out. Where
    no such call is found (a loop of somebody's own), the protocol checks remain.
    """
    return dict(calls[0].f_locals) if calls else {}


def stopped_rows() -> Tensor | None:
    """Rows that the criteria before the calling one have stopped at this step, where it is known.

    A row that a stop string or a criterion of the user's has stopped goes on as padding, and
    nobody is told. The caller must be the last criterion of its list.
    """
    # This function, the criterion, the list's loop over its criteria.
    found = sys._getframe(2).f_locals.get("is_done")
    return found if isinstance(found, Tensor) else None


def check(arguments: Mapping[str, Any], latent: bool) -> None:
    """Refuse what cannot be right.

    Parameters
    ----------
    arguments
        Local variables of ``generate()``.
    latent
        Whether any row may be fed mixtures; the other methods need no cache.

    Raises
    ------
    UnsupportedError
    """
    config = arguments.get("generation_config")
    if config is None:
        return
    if (config.num_beams or 1) > 1:
        raise UnsupportedError(
            f"num_beams: got {config.num_beams}; allowed: 1. Beam search reorders the rows after"
            " they were decided, so that a mixture would be fed to another beam. Use do_sample=True"
            " with num_return_sequences for several answers."
        )
    mode = getattr(arguments.get("generation_mode"), "value", "sample")
    if mode == "assisted_generation":
        raise UnsupportedError(
            "assisted decoding (assistant_model, prompt_lookup_num_tokens, assistant_early_exit): a"
            " draft is made of tokens and cannot foresee a mixture or a forced token. Leave it off"
            " for requests with a spec."
        )
    if mode not in ("greedy_search", "sample"):
        raise UnsupportedError(
            f"generation mode: got {mode}; allowed: greedy_search and sample, whose loops decide"
            " one token of each row at a time. Leave the settings that choose another one unset."
        )
    if config.cache_implementation == "paged":
        raise UnsupportedError(PAGED)
    if latent and config.use_cache is False:
        raise UnsupportedError(
            "use_cache: got False; allowed: True. Without a cache every step embeds all tokens"
            " again, and the mixtures fed before would turn back into tokens."
        )
    if (getattr(config, "guidance_scale", None) or 1) != 1 and latent:
        raise UnsupportedError(
            "guidance_scale: its second forward pass, without the prompt, would be fed tokens"
            " where the first is fed mixtures. Leave it at 1."
        )


PAGED = (
    "cache_implementation='paged' and generate_batch() (continuous batching) do not call the"
    " processors that a request brings, so that a spec would be silently ignored. Use generate()"
    " with a dynamic or static cache, or an engine made for batches: vLLM or SGLang."
)
