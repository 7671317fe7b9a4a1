"""The server over two models in this process, through a real socket."""

import asyncio
import json
import threading

import httpx
import pytest
from routing_fakes import PATIENCE, Served, wait_for
from routing_support import Held, alone, model, prompts, vocabulary

from tokenlens.routing import Router
from tokenlens.routing.hf import HFBackend
from tokenlens.routing.server import make_app
from tokenlens.routing.service import ServerSettings

ASK = "make 6 using 4,11,9"
CHAT = "/v1/chat/completions"


class RouteServer(Served):
    """A router over the tiny reasoners, with its application on a port of this process."""

    def __init__(self, spec, wrap=lambda backend: backend, **settings):
        words = vocabulary()
        small, large = (
            wrap(HFBackend(model(r), words, max_sessions=16)) for r in ("small", "large")
        )
        router = Router(small, large, spec, small_vocabulary=words, large_vocabulary=words)
        super().__init__(make_app(router, ServerSettings(**settings)))

    def post(self, path, body):
        return httpx.post(self.url + path, json=body, timeout=PATIENCE, trust_env=False)

    def get(self, path):
        return httpx.get(self.url + path, timeout=PATIENCE, trust_env=False)

    def metric(self, name):
        """Value of one line of the metrics; 0 where it is not there yet."""
        found = [x for x in self.get("/metrics").text.splitlines() if x.startswith(name + " ")]
        return float(found[0].rpartition(" ")[2]) if found else 0.0


@pytest.fixture(scope="module")
def served():
    one = RouteServer({"policy": {"policy": "glimprouter", "threshold": 0.4}}, max_running=8)
    yield one
    one.close()


def chat(**fields):
    return {"messages": [{"role": "user", "content": ASK}], "max_tokens": 120, "temperature": 0,
            **fields}  # fmt: skip


def events(response):
    lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_whole_and_streamed_are_the_same(served):
    whole = served.post(CHAT, chat(route=True)).json()
    usage = whole["usage"]
    assert usage["completion_tokens"] == sum(m["tokens"] for m in usage["models"].values())
    assert whole["route"]["handover"] == "ids"
    body = chat(stream=True, route=True, stream_options={"include_usage": True})
    with httpx.stream(
        "POST", served.url + CHAT, json=body, timeout=PATIENCE, trust_env=False
    ) as response:
        found = events(response)
    pieces = [c["delta"].get("content", "") for e in found for c in e["choices"]]
    assert "".join(pieces) == whole["choices"][0]["message"]["content"]
    assert len(pieces) > 10
    assert found[-1]["usage"] == usage
    assert found[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert len(found[-2]["route"]["steps"]) == len(whole["route"]["steps"])


def test_what_was_written_is_in_the_collector_of_all_engines(served):
    """The process's own: other routers of these tests report to it, too."""
    name = 'tokenlens_routed_tokens_total{model="large"}'
    before = served.metric(name)
    usage = served.post(CHAT, chat()).json()["usage"]["models"]
    assert served.metric(name) - before == usage["large"]["tokens"] > 0
    assert 'tokenlens_build_info{engine="' in served.get("/metrics").text


def test_completions_take_ids(served):
    body = {"prompt": list(prompts(1)[0]), "max_tokens": 10, "temperature": 0}
    answer = served.post("/v1/completions", body).json()
    ids = alone("small", prompts(1)[0], 10)
    assert answer["choices"][0]["text"] == vocabulary().decode(ids)
    assert answer["usage"]["prompt_tokens"] == len(prompts(1)[0])


@pytest.mark.parametrize(
    ("fields", "word"),
    [({"n": 2}, "n:"), ({"logprobs": True}, "logprobs"), ({"stop": ["x"]}, "stop"),
     ({"temperature": -1}, "temperature"), ({"messages": []}, "messages"),
     ({"tools": [{}]}, "tools"), ({"max_tokens": 0}, "max_tokens")],
)  # fmt: skip
def test_what_cannot_be_carried_out_is_a_400(served, fields, word):
    response = served.post(CHAT, chat(**fields))
    assert response.status_code == 400
    assert word in response.json()["error"]["message"]


def test_a_prompt_that_is_too_long_is_a_400(served):
    body = {"prompt": [1] * 2000, "max_tokens": 10}
    assert served.post("/v1/completions", body).status_code == 400
    stream = served.post("/v1/completions", {**body, "stream": True})
    assert stream.status_code == 400


def test_clients_that_go_away_leave_nothing():
    held = []

    def hold(backend):
        held.append(Held(backend))
        return held[-1]

    one = RouteServer("always_small", hold)

    async def leave(stream):
        """Go away once the model is in the middle of the text, which it never ends by itself."""
        async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
            call = asyncio.create_task(client.post(one.url + CHAT, json=chat(stream=stream)))
            await asyncio.to_thread(wait_for, lambda: held[0].holding == 1)
            assert one.metric("tokenlens_route_running") == 1
            call.cancel()

    def outcomes(name):
        return one.metric(f'tokenlens_route_requests_total{{outcome="{name}"}}')

    try:
        for stream in (True, False):
            before = outcomes("cancelled")
            asyncio.run(leave(stream))
            # The models are told, too.
            wait_for(lambda n=before + 1: outcomes("cancelled") == n and held[0].holding == 0)
            assert one.metric("tokenlens_route_running") == 0
        assert outcomes("done") == 0
        held[0].let_go.set()
        assert one.post(CHAT, chat()).status_code == 200
        assert one.get("/health").status_code == 200
        assert one.get("/v1/models").json()["data"][0]["id"] == "tokenlens-route"
    finally:
        one.close()


def test_a_full_queue_is_a_429():
    let_go = threading.Event()
    one = RouteServer("always_small", lambda b: Held(b, let_go), max_running=1, max_waiting=2)

    async def go():
        async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
            calls = [client.post(one.url + CHAT, json=chat()) for _ in range(8)]
            found = []
            for call in asyncio.as_completed(calls):
                found.append(await call)
                if len(found) == 5:
                    # Whoever was turned away knows it; until now nobody was served.
                    assert {response.status_code for response in found} == {429}
                    let_go.set()
            return found

    try:
        found = asyncio.run(go())
    finally:
        let_go.set()
        one.close()
    assert sorted(response.status_code for response in found) == [200] * 3 + [429] * 5
    assert all(r.headers["retry-after"] == "1" for r in found if r.status_code == 429)
