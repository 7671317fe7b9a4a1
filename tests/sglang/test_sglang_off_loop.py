"""Specs are bound before SGLang looks at a request, in a thread of ours, and searched for once.

SGLang's tokenizer manager cannot be made without an engine: a fake does with a request what it
does, on the event loop. The tokenizer is a real one.
"""

import asyncio
from types import SimpleNamespace

import conformance_models as models
import pytest
import torch
import transformers
from binding_thread import bound_off_the_loop

from tokenlens.serving.arguments import FOUND_KEY
from tokenlens.serving.settings import Settings
from tokenlens.sglang import frontend
from tokenlens.sglang.binding import binder_of
from tokenlens.sglang.hooks import ADMISSION
from tokenlens.spec.text_index import TextIndex

SPEC = {"methods": [{"method": "nowait", "words": ["1"], "quirks": {"match": "substring"}}]}


class FakeManager:
    """A fake of SGLang's tokenizer manager."""

    def __init__(self):
        self.preferred_sampling_params = None
        self.rid_to_state = {}
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(models.REASONER_PATH)
        self.model_config = SimpleNamespace(
            vocab_size=128,
            is_multimodal=False,
            context_len=512,
            hidden_size=64,
            num_hidden_layers=2,
            dtype=torch.float32,
        )
        self.server_args = SimpleNamespace(tp_size=1)
        admission = frontend.SglangFrontEnd.__new__(frontend.SglangFrontEnd)
        admission.settings = Settings()
        admission.bind = binder_of(self.model_config, self.tokenizer)
        setattr(self, ADMISSION, admission)

    async def tokenize(self, request):
        """As `TokenizerManager._tokenize_one_request` ends."""
        values = {"ignore_eos": False, "stop_token_ids": None, "sampling_seed": None, "n": 1}
        params = SimpleNamespace(**{**values, **request.sampling_params})
        for name in (*frontend.FIELDS, "stop_regex", "max_new_tokens", "min_new_tokens"):
            vars(params).setdefault(name, None)
        if params.custom_params:
            vars(self)[ADMISSION].admit(self, request, params)
        return params


@pytest.fixture(scope="module")
def manager():
    return FakeManager()


def admit(manager, custom):
    request = SimpleNamespace(sampling_params={"custom_params": custom}, rid="1")
    return frontend.tokenize_one_request(FakeManager.tokenize, manager, request)


@pytest.fixture(autouse=True)
def hosted(monkeypatch):
    """What a request must not ask for beside a spec is another test's."""
    monkeypatch.setattr(frontend.refusals, "check_request", lambda *_: None)


@pytest.mark.parametrize("text", [False, True])
def test_a_spec_is_bound_off_the_event_loop(manager, monkeypatch, text):
    spec = {**SPEC, "trace": {"level": "full" if text else "off"}}
    params = bound_off_the_loop(monkeypatch, lambda: admit(manager, {"tokenlens": spec}))
    assert params.custom_params[FOUND_KEY]["nowait.words"]


def test_the_scheduler_does_not_search_again(manager, monkeypatch):
    params = asyncio.run(admit(manager, {"tokenlens": SPEC}))
    scheduler = binder_of(manager.model_config, manager.tokenizer)
    monkeypatch.setattr(TextIndex, "holding", lambda *_, **__: pytest.fail("a search"))
    bound = scheduler(params)
    assert list(bound.found["nowait.words"]) == params.custom_params[FOUND_KEY]["nowait.words"]


@pytest.mark.parametrize(
    ("custom", "words"),
    [
        ({"tokenlens": SPEC, FOUND_KEY: {}}, rf"{FOUND_KEY}.*it is ours"),
        ({"tokenlens": {"methods": [{"method": "nowait", "words": ["zebra"]}]}}, r"nowait\.words"),
        ({"tokenlens": {"methods": ["x" * 70_000]}}, "spec: got a larger one"),
        ({"tokenlens": {f"{n:050}": 1 for n in range(2000)}}, "spec: got a larger one"),
        ({"tokenlens_tip.words": ["x" * 70_000]}, "spec: got a larger one"),
        ({"tokenlens": "qwen3-soft", "tokenlens_preset": "qwen3-soft"}, "tokenlens_preset"),
    ],
)
def test_what_is_refused(manager, custom, words):
    with pytest.raises(ValueError, match=words) as caught:
        asyncio.run(admit(manager, custom))
    assert len(str(caught.value)) < 1000


def test_requests_without_a_spec_do_not_wait_for_the_thread(manager, monkeypatch):
    monkeypatch.setattr(frontend, "off_loop", lambda call: pytest.fail("waited"))
    assert asyncio.run(admit(manager, None)).custom_params is None
