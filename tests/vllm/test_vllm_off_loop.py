"""Specs are bound before vLLM looks at a request, in a thread of ours, and searched for once.

The processor that admits requests is vLLM's own, on a real configuration; the asynchronous engine
around it is a fake that does with it what vLLM's does.
"""

import asyncio

import conformance_models as models
import pytest
from binding_thread import bound_off_the_loop

from tokenlens.serving.arguments import FOUND_KEY
from tokenlens.spec.texts import texts_of

SPEC = {"tokenlens_nowait.words": ["1"], "tokenlens_nowait.quirks.match": "substring"}


@pytest.fixture(scope="module")
def processor():
    from vllm import EngineArgs
    from vllm.v1.engine.input_processor import InputProcessor

    arguments = EngineArgs(
        model=str(models.REASONER_PATH),
        logits_processors=["tokenlens.vllm:TokenLens"],
        enforce_eager=True,
        dtype="float32",
        max_model_len=128,
    )
    return InputProcessor(arguments.create_engine_config())


def params(**extra_args):
    from vllm import SamplingParams

    return SamplingParams(max_tokens=4, extra_args=extra_args)


class FakeEngine:
    """A fake of `AsyncLLM`: it admits on the event loop, and starts nothing."""

    def __init__(self, processor):
        self.input_processor = processor

    async def add_request(self, request_id, prompt, params):
        return self.input_processor.process_inputs(
            request_id, prompt, params, supported_tasks=("generate",)
        )


def admit(processor, asked):
    from tokenlens.vllm.frontend import add_request

    prompt = {"type": "token", "prompt_token_ids": [1, 2, 3]}
    engine = FakeEngine(processor)
    return add_request(FakeEngine.add_request, engine, "1", prompt, asked)


def test_texts_are_there_before_any_request(processor):
    assert {"index", "stripped"} <= set(texts_of(processor.tokenizer, 0).made)


def test_a_spec_is_bound_off_the_event_loop(processor, monkeypatch):
    request = bound_off_the_loop(monkeypatch, lambda: admit(processor, params(**SPEC)))
    found = request.sampling_params.extra_args[FOUND_KEY]
    assert found["nowait.words"]
    assert request.sampling_params.extra_args["tokenlens_nowait.words"] == ["1"]


def test_a_refused_spec_is_refused_off_the_loop(processor, monkeypatch):
    from vllm.exceptions import VLLMValidationError

    monkeypatch.setattr(
        type(processor), "process_inputs", lambda *_, **__: pytest.fail("on the loop")
    )
    asked = params(**{"tokenlens_nowait.words": ["zebra"]})
    with pytest.raises(VLLMValidationError, match=r"nowait\.words"):
        asyncio.run(admit(processor, asked))


def test_a_client_cannot_say_what_was_found(processor):
    from vllm.exceptions import VLLMValidationError

    asked = params(**SPEC, **{FOUND_KEY: {"nowait.words": [1]}})
    with pytest.raises(VLLMValidationError, match=FOUND_KEY):
        asyncio.run(admit(processor, asked))


def test_the_worker_does_not_search_again(processor, monkeypatch):
    from tokenlens.spec.text_index import TextIndex
    from tokenlens.vllm.binding import binder_of

    request = asyncio.run(admit(processor, params(**SPEC)))
    worker = binder_of(processor.model_config, processor.tokenizer)
    monkeypatch.setattr(TextIndex, "holding", lambda *_, **__: pytest.fail("a search"))
    bound = worker(request.sampling_params)
    assert (
        list(bound.found["nowait.words"])
        == (request.sampling_params.extra_args[FOUND_KEY]["nowait.words"])
    )


def test_requests_without_a_spec_do_not_wait_for_the_thread(processor, monkeypatch):
    from tokenlens.vllm import frontend

    monkeypatch.setattr(frontend, "off_loop", lambda call: pytest.fail("waited"))
    request = asyncio.run(admit(processor, params()))
    assert FOUND_KEY not in (request.sampling_params.extra_args or {})
