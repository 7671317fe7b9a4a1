"""A vLLM engine in this process as a backend; two of them make a router without a server.

vLLM runs each engine's model in a process of its own and catches up through its prefix cache. Needs
vLLM; knows no policy.
"""

import itertools
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from tokenlens.errors import BackendError
from tokenlens.routing.backend import Ask, Chunk, Context, Finish
from tokenlens.routing.carried import KEY, tripwire
from tokenlens.routing.facts import Fact, Scale, fact_of, ranked
from tokenlens.routing.settings import Role, Sampling
from tokenlens.routing.signals import TOP, FirstTokenSignals
from tokenlens.routing.vocabulary import RouterVocabulary

PROCESSOR = "tokenlens.vllm:TokenLens"
"""What switches tokenlens on in an engine, by name."""


class VLLMBackend:
    """One ``vllm.v1.engine.async_llm.AsyncLLM``.

    Parameters
    ----------
    engine
        The engine, with ``max_logprobs`` of at least 20 and prefix caching, which are defaults.
    vocabulary
        The model's tokenizer.
    """

    gives_full_entropy = False

    def __init__(self, role: Role, engine: Any, vocabulary: RouterVocabulary) -> None:
        self._role: Role = role
        self._engine = engine
        self._vocabulary = vocabulary
        self.max_length: int | None = engine.model_config.max_model_len
        self._calls = itertools.count()
        # Whether calls end in its step before a token: where it was started with tokenlens.
        named = getattr(engine.model_config, "logits_processors", None) or ()
        self.trips = any(
            one == PROCESSOR if isinstance(one, str) else getattr(one, "is_tokenlens", False)
            for one in named
        )

    async def generate(self, ask: Ask) -> AsyncGenerator[Chunk]:
        """Continue a context of ids."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        wire = None
        if ask.trip is not None and self.trips:
            how = Sampling(**self._sampling(ask.sampling))
            wire = tripwire(ask.trip, how, warped=ask.warped)
        params = SamplingParams(
            max_tokens=ask.max_tokens,
            **self._sampling(ask.sampling),
            seed=ask.engine_seed,
            stop=[*(ask.ends.texts if ask.ends is not None else ()), *ask.stop_texts] or None,
            stop_token_ids=sorted(ask.stop_ids) or None,
            include_stop_str_in_output=True,
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
            logprobs=TOP if ask.signals else ask.facts or None,
            output_kind=RequestOutputKind.DELTA if ask.stream else RequestOutputKind.FINAL_ONLY,
            extra_args=wire,
        )
        is_first = True
        scale = await self.log_prob_scale()
        async for output in self._outputs(ask.session, ask.context, params):
            one = output.outputs[0]
            signals = self._signals(one.logprobs[0]) if is_first and one.logprobs else None
            is_first = False
            finish: Finish | None = None
            if one.finish_reason == "length":
                finish = "length"
            elif one.finish_reason is not None:
                # A number is the token that ended the text, where a model has several.
                asked = ask.ends.texts if ask.ends is not None else ()
                ours = (*asked, *ask.stop_texts, *ask.stop_ids)
                finish = "stop" if one.stop_reason in ours else "eos"
            ids = tuple(one.token_ids)
            facts: tuple[Fact, ...] = ()
            if ask.facts and one.logprobs:
                facts = tuple(self._fact(i, e, ask, scale) for i, e in zip(ids, one.logprobs))
            trace = getattr(one, KEY, None) if wire is not None else None
            if trace is not None and trace.tripped is not None:
                # The end of the text is the tripwire's, and no part of it.
                found = Fact(-1, 0.0, entropy=trace.tripped.value)
                ids, facts, finish = ids[:-1], (*facts[:-1], found), "trip"
            yield Chunk(ids, "", len(ids), signals, finish, facts)

    async def log_probs(self, session: str, context: Context, ids: Sequence[int]) -> list[float]:
        """Log-probabilities of ``ids`` behind the context."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        found: list[float] = []
        async for output in self._outputs(session, (*context, *ids), params):
            entries = output.prompt_logprobs[-len(ids) :]
            found = [entry[token].logprob for entry, token in zip(entries, ids)]
        return found

    async def log_prob_scale(self) -> Scale:
        """As the engine was started."""
        mode = str(getattr(self._engine.model_config, "logprobs_mode", "raw_logprobs"))
        return "processed" if mode.startswith("processed") else "raw"

    async def release(self, session: str) -> None:
        """Nothing: the prefix cache looks after itself."""

    async def close(self) -> None:
        """Stop the engine."""
        self._engine.shutdown()

    async def _outputs(self, session: str, context: Context, params: Any) -> AsyncGenerator[Any]:
        prompt = {"prompt_token_ids": list(context)}
        name = f"{session}-{self._role}-{next(self._calls)}"
        try:
            # Closing it aborts the request.
            async for output in self._engine.generate(prompt, params, name):
                yield output
        except ValueError as error:
            raise BackendError(
                self._role, "refused", "the engine refuses the request", 400, str(error)
            ) from None

    def _sampling(self, how: Sampling) -> dict[str, Any]:
        """What is asked of sampling, above the defaults of the engine's model."""
        own = self._engine.model_config.get_diff_sampling_param()
        fields = {name: own[name] for name in ("temperature", "top_p", "top_k") if name in own}
        asked = {"temperature": how.temperature, "top_p": how.top_p, "top_k": how.top_k}
        return fields | {name: value for name, value in asked.items() if value is not None}

    def _signals(self, entries: Any) -> FirstTokenSignals:
        ranked = sorted(entries.items(), key=lambda item: -item[1].logprob)[:TOP]
        return FirstTokenSignals(
            tuple((self._vocabulary.piece(i), one.logprob) for i, one in ranked)
        )

    def _fact(self, token: int, entries: Any, ask: Ask, scale: Scale) -> Fact:
        values = {i: float(one.logprob) for i, one in entries.items()}
        how = Sampling(**self._sampling(ask.sampling))
        top = ranked(values, ask.facts)
        return fact_of(token, values[token], top, how, scale, warped=ask.warped)
