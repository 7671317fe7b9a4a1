"""Step routing inside ``generate()``: the model it is called on is the large one.

Hands the prepared inputs to a router of its own for each call; knows no policy.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import torch
from torch import Tensor

from tokenlens.errors import UnsupportedError
from tokenlens.hf.given import ids_of, tokenizer_of
from tokenlens.routing.hf import HFBackend
from tokenlens.routing.router import Routed, Router
from tokenlens.routing.settings import RoutingSpec, Sampling, parse_routing
from tokenlens.routing.vocabulary import RouterVocabulary

CARRIED = ("TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper")
"""Processors that generate() makes of settings which the loop carries out itself."""


class RoutedGenerate:
    """What ``generate(custom_generate=...)`` calls; ``traces`` are those of its last call."""

    def __init__(
        self, small: Any, tokenizer: Any, spec: Any, streamer: Any, max_sessions: int
    ) -> None:
        self.traces: list[Any] = []
        self._small, self._tokenizer, self._spec = small, tokenizer, spec
        self._streamer, self._max_sessions = streamer, max_sessions

    def __call__(
        self, model: Any, input_ids: Tensor, generation_config: Any = None, **kwargs: Any
    ) -> Tensor:
        config = generation_config or model.generation_config
        sampling = _sampling(config)
        processors = [type(one).__name__ for one in kwargs.get("logits_processor") or ()]
        if names := [name for name in processors if name not in CARRIED]:
            raise UnsupportedError(
                f"logits_processor: got {', '.join(names)}; allowed: none, because each step is"
                " sampled by one of two models with the temperature, top_k and top_p given"
            )
        if self._streamer is not None and len(input_ids) > 1:
            raise UnsupportedError(f"streamer: got {len(input_ids)} rows; allowed: one")
        # -1 is a way to say "none".
        eos_ids = [token for token in ids_of(config.eos_token_id) if token >= 0]
        words = RouterVocabulary(self._tokenizer, eos_ids)
        mask = kwargs.get("attention_mask")
        rows = [
            row[kept.bool()] if kept is not None else row
            for row, kept in zip(input_ids, mask if mask is not None else [None] * len(input_ids))
        ]
        prompts = [tuple(row.tolist()) for row in rows]
        tokens_left = int(config.max_length) - input_ids.shape[1]
        if self._streamer is not None:
            self._streamer.put(input_ids.cpu())
        routed = _run(lambda: self._all(model, words, prompts, sampling, tokens_left))
        self.traces = [one.trace for one in routed]
        if self._streamer is not None:
            self._streamer.end()
        pad = config.pad_token_id if config.pad_token_id is not None else (eos_ids or [0])[0]
        longest = max(len(one.ids) for one in routed)
        made = [one.ids + [pad] * (longest - len(one.ids)) for one in routed]
        return torch.cat([input_ids, torch.tensor(made, device=input_ids.device)], dim=1)

    async def _all(
        self,
        model: Any,
        words: RouterVocabulary,
        prompts: list[tuple[int, ...]],
        sampling: Sampling,
        tokens_left: int,
    ) -> list[Routed]:
        writer = self._writer(model, words, len(prompts))
        watch = self._watch()
        try:
            routed: list[Routed] = await asyncio.gather(
                *(
                    writer.run(
                        ids,
                        sampling=sampling.model_copy(update={"seed": sampling.seed + row}),
                        max_tokens=tokens_left,
                        watch=watch,
                    )
                    for row, ids in enumerate(prompts)
                )
            )
            return routed
        finally:
            await writer.close()

    def _writer(self, model: Any, words: RouterVocabulary, num_rows: int) -> Any:
        """What writes the rows of this call, and is closed behind it."""
        sessions = min(self._max_sessions, num_rows)
        small, large = (
            HFBackend(one, words, max_sessions=sessions) for one in (self._small, model)
        )
        return Router(small, large, self._spec, small_vocabulary=words, large_vocabulary=words)

    def _watch(self) -> Callable[[tuple[int, ...]], None] | None:
        """Hands ids to the caller's streamer, if there is one."""
        streamer = self._streamer
        if streamer is None:
            return None

        def watch(ids: tuple[int, ...]) -> None:
            for token in ids:
                streamer.put(torch.tensor([token]))

        return watch


def routed_generate_kwargs(
    small: Any,
    tokenizer: Any,
    policy: RoutingSpec | Mapping[str, Any] | str = "glimprouter",
    *,
    streamer: Any = None,
    max_sessions: int = 64,
) -> dict[str, Any]:
    """Arguments with which ``large.generate()`` routes its steps to a small model.

    Parameters
    ----------
    small
        A causal language model of the same tokenizer.
    tokenizer
        The tokenizer of both.
    policy
        A :class:`tokenlens.routing.RoutingSpec`, a mapping, or a policy's name.
    streamer
        Yours. It has to come through here: ``generate(streamer=...)`` is not handed on to a
        custom loop, and would never be ended.
    max_sessions
        Rows at once.

    Returns
    -------
    dict
        ``custom_generate``; its ``traces`` are those of the last call.

    Raises
    ------
    SpecError
        The settings are wrong.
    UnsupportedError
        By ``generate()``, for processors that two models cannot share.

    Examples
    --------
    >>> kwargs = routed_generate_kwargs(small, tokenizer)  # doctest: +SKIP
    >>> output = large.generate(**inputs, **kwargs, max_new_tokens=8192)  # doctest: +SKIP
    >>> kwargs["custom_generate"].traces[0].large_step_share  # doctest: +SKIP
    """
    spec = parse_routing(policy)
    tokenizer = tokenizer_of(tokenizer)
    return {"custom_generate": RoutedGenerate(small, tokenizer, spec, streamer, max_sessions)}


def _sampling(config: Any) -> Sampling:
    if getattr(config, "num_beams", 1) not in (None, 1):
        raise UnsupportedError(f"num_beams: got {config.num_beams}; allowed: 1")
    if getattr(config, "return_dict_in_generate", False):
        raise UnsupportedError("return_dict_in_generate: got True; allowed: False")
    if not config.do_sample:
        return Sampling()
    # The same call under the same torch seed draws the same tokens.
    seed = int(torch.randint(0, 1 << 62, (1,)))
    return Sampling(
        temperature=config.temperature or 1.0,
        top_p=1.0 if config.top_p is None else config.top_p,
        top_k=config.top_k or 0,
        seed=seed,
    )


def _run(work: Callable[[], Coroutine[Any, Any, list[Routed]]]) -> list[Routed]:
    """Run a coroutine to its end, also inside a notebook, whose thread has a loop already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    found: list[Any] = []

    def target() -> None:
        try:
            found.append(asyncio.run(work()))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    result: list[Routed] = found[0]
    return result
