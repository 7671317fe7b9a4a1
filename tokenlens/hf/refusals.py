"""What ``generate()`` can be asked for that cannot be right with a spec, and why."""

import sys
from collections.abc import Mapping
from typing import Any

FRAMES_SEARCHED = 12
"""How far up the stack ``generate()`` can be from where it takes our processors."""


class UnsupportedError(NotImplementedError):
    """A setting of ``generate()`` that cannot host a spec. Says why and what to do."""


class ProtocolError(RuntimeError):
    """The loop around the model did not do what ``generate()`` does, so a mixture would be lost."""


def calling_generate() -> Mapping[str, Any]:
    """The arguments of the ``generate()`` call that is under way, or nothing.

    Its settings are not passed to anyone, but they decide whether a spec can be carried out. Where
    no such call is found (a loop of somebody's own), the protocol checks remain.
    """
    frame = sys._getframe(1)
    for _ in range(FRAMES_SEARCHED):
        if frame.f_back is None:
            break
        frame = frame.f_back
        if frame.f_code.co_name == "generate" and "generation_config" in frame.f_locals:
            return dict(frame.f_locals)
    return {}


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
    assisted = arguments.get("assistant_model") is not None
    if assisted or getattr(config, "prompt_lookup_num_tokens", None):
        raise UnsupportedError(
            "assisted decoding (assistant_model, prompt_lookup_num_tokens): a draft is made of"
            " tokens and cannot foresee a mixture or a forced token. Leave it off for requests with"
            " a spec."
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
