"""Think-at-Hard inside ``generate()``: a loop of its own, which makes the passes.

``generate()`` has prepared prompts, processors and criteria; what is left is its sampling loop.
"""

import inspect
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from tokenlens.errors import SpecError, UnsupportedError
from tokenlens.hf.compiled import compiled_part
from tokenlens.hf.run import Run
from tokenlens.hf.think_at_hard.learned import FIELD, learned_of
from tokenlens.hf.think_at_hard.passes import TwoPasses
from tokenlens.methods import files as operator_files
from tokenlens.routing.hf import check_attention

SETTINGS: Mapping[str, tuple[object, ...]] = {
    "num_beams": (None, 1),
    "use_cache": (None, True),
    "cache_implementation": (None, "dynamic"),
    "return_dict_in_generate": (None, False),
    "guidance_scale": (None, 1, 1.0),
    "penalty_alpha": (None, 0, 0.0),
    "dola_layers": (None,),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
}
"""Settings of a call, and what they may be: two passes have caches and a loop of their own."""

INPUTS = {
    "attention_mask", "position_ids", "cache_position", "past_key_values", "cache", "use_cache",
    "logits_to_keep",
}  # fmt: skip
"""What ``generate()`` may hand on beside the ids."""


class ThinkAtHardGenerate:
    """What ``generate(custom_generate=...)`` calls.

    Attributes
    ----------
    again
        Of the last call, ``[num_rows, columns]`` bool on the CPU: which positions, of the prompt
        too, had a second pass. The last token is not in it, which was never fed.
    """

    def __init__(
        self, model: Any, file: str, threshold: float | None, soft_top: int, streamer: Any
    ) -> None:
        self.again = torch.zeros(0, 0, dtype=torch.bool)
        self._model, self._streamer, self._soft_top = model, streamer, soft_top
        self._learned = learned_of(model, file)
        own = self._learned.threshold
        if threshold is None and own is None:
            raise SpecError.of(
                "think_at_hard.threshold", None, f"a number: the file {file} has none of its own"
            )
        self._threshold: float = own if threshold is None else threshold  # type: ignore[assignment]

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        config = generation_config or model.generation_config
        self._refuse(model, config, logits_processor or (), kwargs)
        if self._streamer is not None:
            if len(input_ids) > 1:
                raise UnsupportedError(f"streamer: got {len(input_ids)} rows; allowed: one")
            self._streamer.put(input_ids.cpu())
        mask: Tensor | None = kwargs.get("attention_mask")
        positions = kwargs.get("position_ids")
        if positions is None:
            counted = torch.ones_like(input_ids) if mask is None else mask.long()
            positions = (counted.cumsum(dim=1) - 1).clamp(min=0)
        positions = positions.expand_as(input_ids)
        passes = TwoPasses(
            model, self._learned, threshold=self._threshold, soft_top=self._soft_top,
            num_rows=len(input_ids),
        )  # fmt: skip
        live = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        ends = any(hasattr(one, "eos_token_id") for one in stopping_criteria)
        pad = getattr(config, "_pad_token_tensor", None)
        ids, again = input_ids, []
        while True:
            logits, chosen = passes(ids, mask, positions, live)
            again.append(chosen)
            scores = logits_processor(input_ids, logits[:, -1].to(input_ids.device))
            if config.do_sample:
                tokens = torch.multinomial(scores.softmax(dim=-1), num_samples=1)[:, 0]
            else:
                tokens = scores.argmax(dim=-1)
            if ends and pad is not None:
                tokens = torch.where(live, tokens, pad.to(tokens.device))
            ids = tokens[:, None]
            input_ids = torch.cat([input_ids, ids], dim=1)
            if self._streamer is not None:
                self._streamer.put(tokens.cpu())
            live = live & ~stopping_criteria(input_ids, None)
            if not bool(live.any()):
                break
            positions = positions[:, -1:] + 1
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        self.again = torch.cat(again, dim=1).cpu()
        if self._streamer is not None:
            self._streamer.end()
        return input_ids

    def _refuse(self, model: Any, config: Any, processors: Any, inputs: Mapping[str, Any]) -> None:
        if model is not self._model:
            raise UnsupportedError(
                f"think_at_hard: got generate() of another {type(model).__name__}; allowed: the"
                " model that the arguments were made for, which its file was held to"
            )
        for name, allowed in SETTINGS.items():
            got = getattr(config, name, None)
            if got not in allowed:
                raise UnsupportedError(
                    f"{name}: got {got}; allowed: {allowed[-1]} with think_at_hard, whose second"
                    " passes have a cache and a loop of their own"
                )
        if any(isinstance(one, Run) for one in processors):
            raise UnsupportedError(
                "logits_processor: got those of a tokenlens spec; allowed: others, because a spec"
                " decides on one forward pass for each token, and here there may be two"
            )
        held = inputs.get("past_key_values", inputs.get("cache"))
        if held is not None and held.get_seq_length():
            raise UnsupportedError(
                f"past_key_values: got a cache of {held.get_seq_length()} positions; allowed: none,"
                " because it says nothing of second passes"
            )
        positions = inputs.get("position_ids")
        if positions is not None and positions.dim() != 2:
            raise UnsupportedError(
                f"position_ids: got {positions.dim()} dimensions; allowed: 2, one position for each"
                " token"
            )
        others = sorted(k for k, one in inputs.items() if one is not None and k not in INPUTS)
        if others:
            raise UnsupportedError(
                f"inputs: got {', '.join(others)}; allowed: input_ids, attention_mask and"
                " position_ids"
            )
        if part := compiled_part(model):
            raise UnsupportedError(
                f"torch.compile: got {part} compiled; allowed: a model as it is, because the LoRA"
                " of second passes is hooked in, and a graph made before would not have it"
            )


def think_at_hard_generate_kwargs(
    model: Any,
    file: str = "think_at_hard",
    *,
    threshold: float | None = 0.9,
    soft_top: int = 100,
    streamer: Any = None,
    files: Mapping[str, str | PathLike[str]] | None = None,
) -> dict[str, Any]:
    """Arguments with which ``model.generate()`` runs hard positions twice (arXiv 2511.08577).

    Parameters
    ----------
    model
        A causal language model with full attention in every layer, ``sdpa`` or ``eager``.
    file
        The operator's, by the name that it is allowed under: ``docs/hidden_states.md``.
    threshold
        A position goes again whose probability is above it, from 0 to 1; ``None``: the file's own.
        As published it is 0.9 whatever the file says. 1 is exactly the model.
    soft_top
        Most probable tokens in the mixture that a second pass is fed; 100 as published.
    streamer
        Yours: ``generate(streamer=...)`` is not handed on to a custom loop.
    files
        As :func:`tokenlens.hf.generate_kwargs` takes them.

    Returns
    -------
    dict
        ``custom_generate``; its ``again`` says which positions of the last call went again. Use a
        dict of its own in every thread.

    Raises
    ------
    SpecError
        An argument or a file that this model cannot carry out.
    UnsupportedError
        By ``generate()``, for settings and inputs that are not for two passes.

    Notes
    -----
    The host reads once a step whether there is a second pass; that pass copies its rows' caches.
    Its LoRA is hooked into the model while it runs: one call at a time on a model.

    Examples
    --------
    >>> kwargs = think_at_hard_generate_kwargs(
    ...     model, files={"think_at_hard": "tah.safetensors"}
    ... )  # doctest: +SKIP
    >>> output = model.generate(**inputs, **kwargs, max_new_tokens=8192)  # doctest: +SKIP
    >>> float(kwargs["custom_generate"].again.float().mean())  # doctest: +SKIP
    """
    right = type(threshold) in (int, float) and 0 <= threshold <= 1  # type: ignore[operator]
    if threshold is not None and not right:
        raise SpecError.of("think_at_hard.threshold", threshold, "a number from 0 to 1, or None")
    vocab_size = model.config.get_text_config().vocab_size
    if type(soft_top) is not int or not 1 <= soft_top <= vocab_size:
        raise SpecError.of("think_at_hard.soft_top", soft_top, f"1 to {vocab_size} tokens")
    check_attention(model, "second passes are masked one by one")
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise SpecError.of(
            "model", type(model).__name__, "one whose forward pass takes position_ids"
        )
    if not isinstance(file, str):
        raise SpecError.of(FIELD, file, "the name of a file that the operator allows")
    operator_files.allow(files or {})
    operator_files.allow_from_environment()
    made = ThinkAtHardGenerate(model, file, threshold, soft_top, streamer)
    return {"custom_generate": made}
