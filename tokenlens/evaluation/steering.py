"""Answers that a controller steers from outside the step, for evaluations."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tokenlens.controllers import Controller, Steered
from tokenlens.controllers.spec import ControllerSpec
from tokenlens.errors import SpecError
from tokenlens.evaluation.arms import ArmSampling
from tokenlens.evaluation.engine import prompt_ids
from tokenlens.evaluation.records import Generated
from tokenlens.routing.backend import Backend
from tokenlens.routing.settings import Sampling
from tokenlens.routing.vocabulary import RouterVocabulary
from tokenlens.spec import encode_text


def steered(
    backend: Backend,
    words: RouterVocabulary,
    prompts: Sequence[str],
    steer: ControllerSpec,
    sampling: ArmSampling,
    *,
    max_new_tokens: int,
    seeds: Sequence[int],
) -> list[Generated]:
    """Answers to user messages, all at once; closes the backend.

    Parameters
    ----------
    seeds
        One for each answer: what a controller draws hangs on nothing else.

    Raises
    ------
    SpecError
        This model cannot be steered so.
    """
    if sampling.min_p:
        raise SpecError.of("min_p", sampling.min_p, "0 beside a controller")
    how = Sampling(
        temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k
    )  # fmt: skip

    async def go() -> list[Steered]:
        controller = Controller(backend, steer, vocabulary=words)
        try:
            calls = [
                controller.run(
                    tuple(prompt_ids(words.tokenizer, prompt)),
                    sampling=how.model_copy(update={"seed": seed}),
                    max_tokens=max_new_tokens,
                )
                for prompt, seed in zip(prompts, seeds, strict=True)
            ]
            return await asyncio.gather(*calls)
        finally:
            await controller.close()

    # A thread of its own: an evaluation may be called where a loop runs, as in a notebook.
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(asyncio.run, go()).result()
    end = () if steer.think_end is None else _ids(words, steer.think_end)
    return [_answer(words, one, end) for one in found]


def _ids(words: RouterVocabulary, marker: str | Sequence[int]) -> tuple[int, ...]:
    given = encode_text(words.tokenizer, marker, "think_end") if isinstance(marker, str) else marker
    return tuple(given)


def _answer(words: RouterVocabulary, found: Steered, end: tuple[int, ...]) -> Generated:
    ids = tuple(found.ids)
    places = [at for at in range(len(ids)) if end and ids[at : at + len(end)] == end]
    usage = found.trace.usage.values()
    thrown = sum(one.discarded_tokens for one in usage)
    return Generated(
        text=words.tokenizer.decode(list(ids)),
        tokens=sum(one.tokens for one in usage) + thrown,
        discarded_tokens=thrown,
        thinking_tokens=places[0] if places else 0,
        finished=found.finish_reason == "stop",
    )
