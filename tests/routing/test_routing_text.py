"""Servers of text: any OpenAI-compatible one, whether it tells probabilities or not."""

import asyncio
import math

import httpx
import pytest
from routing_fakes import PATIENCE, Served, fake_server, wait_for
from routing_servers import Proxy
from routing_support import alone, model, prompts, vocabulary

from tokenlens.routing import Router, Sampling
from tokenlens.routing.hf import HFBackend
from tokenlens.routing.http import HTTPBackend, HTTPSettings
from tokenlens.routing.serve import Target, build, endpoints
from tokenlens.routing.server import make_app
from tokenlens.routing.service import ServerSettings
from tokenlens.spec import SpecError

BOUNDS = ServerSettings()
SETTINGS = HTTPSettings(read_timeout=600, connect_timeout=60)


@pytest.fixture(scope="module")
def servers():
    """The two models behind sockets, as somebody else's servers."""
    found = [Served(fake_server(role)) for role in ("small", "large")]
    yield found
    for one in found:
        one.close()


def local(spec):
    """A router over the models in this process."""
    words = vocabulary()
    backends = [HFBackend(model(role), words) for role in ("small", "large")]
    return Router(*backends, spec, small_vocabulary=words, large_vocabulary=words)


def over(urls, spec):
    """A router over two servers of text."""
    backends = [
        HTTPBackend(role, url, f"tiny-{role}", api="text", settings=SETTINGS)
        for role, url in zip(("small", "large"), urls)
    ]
    return Router(*backends, spec)


def route(router, prompt, **kwargs):
    """One text."""

    async def go():
        try:
            return await router.run(prompt, max_tokens=160, **kwargs)
        finally:
            await router.close()

    return asyncio.run(go())


@pytest.mark.parametrize(("threshold", "role"), [(math.inf, "small"), (-math.inf, "large")])
def test_one_model_alone(servers, threshold, role):
    words, ids = vocabulary(), prompts(2)[1]
    policy = {"policy": "glimprouter", "threshold": threshold}
    router = over([one.url for one in servers], {"policy": policy, "duplicate_guard": False})
    routed = route(router, words.decode(ids))
    expected = alone(role, ids, 160)
    assert routed.text == words.decode([i for i in expected if i not in words.eos_ids])
    # The end of the text is no token of its own in a stream of text.
    assert len(expected) - routed.tokens in (0, 1)
    assert routed.trace.usage[role].tokens == routed.tokens


def test_two_models_by_text_write_what_they_write_by_ids(servers):
    words, ids = vocabulary(), prompts(2)[1]
    spec = {"policy": {"policy": "random", "share": 0.5}, "duplicate_guard": False}
    found = route(over([one.url for one in servers], spec), words.decode(ids))
    expected = route(local(spec), ids)
    assert found.text == expected.text
    assert (found.trace.handover, expected.trace.handover) == ("text", "ids")
    writers = [[p.writer for p in step.pieces] for step in found.trace.steps]
    assert writers == [[p.writer for p in step.pieces] for step in expected.trace.steps]
    assert {"small", "large"} == {name for step in writers for name in step}


def test_the_entropy_is_of_what_a_server_tells(servers):
    words, ids = vocabulary(), prompts(2)[1]
    router = over([one.url for one in servers], "glimprouter")
    steps = route(router, words.decode(ids)).trace.steps
    assert {s.signal_name for s in steps if s.phase == "thinking"} == {"topk_entropy"}
    assert all(0 <= s.signal <= math.log(5) for s in steps if s.signal is not None)


def test_a_server_that_refuses_probabilities():
    """Routers are such servers: a router of routers, each of which is one of the models."""
    words, ids = vocabulary(), prompts(2)[1]
    routers = [Served(make_app(local(f"always_{r}"), ServerSettings())) for r in ("small", "large")]
    spec = {"policy": {"policy": "random", "share": 0.5}, "duplicate_guard": False}
    try:
        found = route(over([one.url for one in routers], spec), words.decode(ids))
    finally:
        for one in routers:
            one.close()
    assert found.text == route(local(spec), ids).text
    assert found.tokens > 20


@pytest.mark.parametrize(("stream", "budget"), [(True, 0), (True, 700), (False, 700)])
def test_a_client_that_goes_away_ends_the_call(servers, stream, budget):
    """Before the first piece of the text, and in its middle."""
    proxy = Proxy(servers[0].url)
    router = Served(make_app(over([proxy.address, servers[1].url], "always_small"), BOUNDS))
    body = {"prompt": vocabulary().decode(prompts(2)[1]), "max_tokens": 100, "stream": stream,
            "temperature": 0}  # fmt: skip

    async def leave():
        async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
            call = asyncio.create_task(client.post(router.url + "/v1/completions", json=body))
            await asyncio.to_thread(wait_for, lambda: proxy.held == 1)
            call.cancel()

    proxy.mode, proxy.budget = "hold", budget
    try:
        asyncio.run(leave())
        wait_for(lambda: proxy.open_connections == 0)
    finally:
        proxy.mode = "pass"
        router.close()
        proxy.close()


def test_settings_that_only_show_when_servers_are_asked(servers):
    small, large = (one.url for one in servers)
    found = endpoints({"small": Target(small), "large": Target(large)}, SETTINGS)
    assert [(one.model, one.api) for one in found.values()] == [
        ("tiny-small", "text"), ("tiny-large", "text"),
    ]  # fmt: skip
    dead = "http://127.0.0.1:9"
    with pytest.raises(SpecError, match=f"large.*{dead}.*--large-model"):
        endpoints({"small": Target(small), "large": Target(dead)}, SETTINGS)
    with pytest.raises(SpecError, match=r"small and large.*neither"):
        endpoints({"small": Target(dead), "large": Target(dead + "9")}, SETTINGS)
    with pytest.raises(SpecError, match=r"small_tokenizer.*nowhere"):
        endpoints({"small": Target(small, tokenizer="./nowhere"), "large": Target(large)}, SETTINGS)
    # A server that will come up later can be described.
    later = Target(dead, model="later", api="text")
    _, router, found = build(
        {"small": Target(small), "large": later}, local("random").spec, SETTINGS, ServerSettings()
    )
    assert found["large"].model == "later"
    routed = route(router, vocabulary().decode(prompts(2)[1]), sampling=Sampling(seed=3))
    assert any(step.fallback for step in routed.trace.steps)
    assert routed.text
