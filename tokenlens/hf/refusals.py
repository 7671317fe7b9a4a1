"""What ``generate()`` can be asked for that cannot be right with a spec, and why."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from tokenlens.core import Request
from tokenlens.errors import UnsupportedError


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
        Of the ``generate()`` call: :meth:`tokenlens.hf.calls.Call.arguments`.
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
    # Asked of the settings: whoever replaces generate() need not have such a variable.
    mode = getattr(config.get_generation_mode(arguments.get("assistant_model")), "value", "sample")
    if mode == "assisted_generation":
        raise UnsupportedError(
            "assistant_model, prompt_lookup_num_tokens, assistant_early_exit: got one of them, so"
            " assisted decoding; allowed: none, because a draft is made of tokens and cannot"
            " foresee a mixture or a forced token. Leave it off for requests with a spec."
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
            f"guidance_scale: got {config.guidance_scale}; allowed: 1, because its second forward"
            " pass, without the prompt, would be fed tokens where the first is fed mixtures. Leave"
            " it at 1."
        )


def refuse_embeddings(requests: Iterable[Request]) -> None:
    """Refuse prompts that come as embeddings alone where the phase is read off tokens.

    Raises
    ------
    UnsupportedError
    """
    for request in requests:
        if request.spec.methods and not request.from_first_token:
            names = ", ".join(config.method for config in request.spec.methods)
            raise UnsupportedError(
                f"inputs_embeds: got embeddings alone for {names}; allowed: token ids, because"
                " whether the prompt has opened the thinking is read off them. Pass input_ids"
                " beside inputs_embeds, or generate_kwargs(..., prompt_ids=[...]) with the tokens"
                " of each prompt; a latent method may have start: first_token instead."
            )


PAGED = (
    "cache_implementation: got 'paged', or a call of generate_batch(); allowed: neither, because"
    " continuous batching does not call the processors that a request brings, so that a spec would"
    " be silently ignored. Use generate() with a dynamic or static cache, or an engine made for"
    " batches: vLLM or SGLang."
)

REPLACED = (
    "logits_processor: got tokenlens' stopping criterion in this call, but not its list; allowed:"
    " both, because the spec would be silently ignored. Do not replace kwargs['logits_processor']"
    " by a list of your own: append to it, or give yours to generate_kwargs(...,"
    " logits_processor=[...])."
)
"""A call that got one of the two arguments."""

OUTSIDE = (
    "logits_processor: got it iterated or called outside of generate(); allowed: inside of it. In a"
    " decoding loop of your own the mixtures would not be fed: use model.generate(**kwargs), or"
    " hand your loop to model.generate(**kwargs, custom_generate=...), which gives it a list that"
    " works. To add processors of your own, give them to generate_kwargs(...,"
    " logits_processor=[...]), or append them to kwargs['logits_processor']; do not build a new"
    " list from it."
)
"""A list that was taken apart."""
