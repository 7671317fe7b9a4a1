"""The router server in front of two real vLLM servers, with everything that can go wrong."""

import asyncio
import json
import math
import os
import re
import signal
import subprocess
from pathlib import Path

import httpx
import pytest
from routing_fakes import wait_for
from routing_servers import ROOT, VLLM_PYTHON, Proxy, route_server, vllm_server
from routing_support import VERBAL, alone, model, prompts, turned, vocabulary
from servers import VLLM_ENVIRONMENT
from test_routing_text import local, over, route

from tokenlens.controllers import Controller
from tokenlens.routing import Ask, Sampling, parse_routing
from tokenlens.routing.hf import HFBackend
from tokenlens.routing.http import HTTPBackend, HTTPSettings
from tokenlens.routing.serve import Target, build
from tokenlens.routing.service import ServerSettings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not VLLM_PYTHON.exists(), reason="make .venv-vllm first"),
]

# A crowd on a CPU takes its time, and nothing here may hang on how much.
PATIENCE = (
    "--setting", "read_timeout=600", "--setting", "connect_timeout=60", "--setting", "cooldown=1",
    "--setting", "backoff=0.05", "--setting", "request_timeout=3600",
)  # fmt: skip
MIXED = json.dumps({"policy": {"policy": "glimprouter", "threshold": 0.4}})
ASK = "make 6 using 4,11,9"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("routing")


@pytest.fixture(scope="module")
def servers(folder):
    """The two models, on processors."""
    found = {}
    try:
        for role in ("small", "large"):
            found[role] = vllm_server(role, folder / f"{role}.log")
        yield found
    finally:
        for one in found.values():
            one.stop()


@pytest.fixture(scope="module")
def proxies(servers):
    """A proxy before each model."""
    found = {role: Proxy(one.address) for role, one in servers.items()}
    yield found
    for one in found.values():
        one.close()


@pytest.fixture(scope="module")
def router(proxies, folder):
    """A router over the proxies, with a mixed policy."""
    started = route_server(
        proxies["small"].address, proxies["large"].address, folder / "route.log",
        "--policy", MIXED, *PATIENCE,
    )  # fmt: skip
    yield started
    started.stop()


@pytest.fixture(autouse=True)
def passing(request):
    """Every test begins and ends with servers that answer, and closed breakers."""
    yield
    if "proxies" in request.fixturenames:
        for proxy in request.getfixturevalue("proxies").values():
            proxy.mode, proxy.budget = "pass", 0
    if "router" in request.fixturenames:
        wait_until_well(request.getfixturevalue("router").address)


def wait_until_well(address):
    """Until both models are used again and no breaker is open; a model's first call is slow."""

    def is_well():
        body = {"messages": [{"role": "user", "content": ASK}], "route": True, "max_tokens": 200}
        response = post(address, body)
        well = response.status_code == 200 and not fallbacks(response.json())
        return well and set(breakers(address).values()) == {"closed"}

    wait_for(is_well)


def post(address, body, path="/v1/chat/completions"):
    return httpx.post(address + path, json=body, timeout=600, trust_env=False)


def ask(address, **fields):
    """One chat, whole, with its route."""
    body = {"messages": [{"role": "user", "content": ASK}], "route": True, "max_tokens": 200}
    response = post(address, {**body, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def breakers(address):
    return httpx.get(address + "/health", timeout=120, trust_env=False).json()["breakers"]


def fallbacks(answer):
    return [s["fallback"] for s in answer["route"]["steps"] if s["fallback"]]


def metric(address, name, **labels):
    text = httpx.get(address + "/metrics", timeout=120, trust_env=False).text
    total = 0.0
    for found, value in re.findall(rf"^{name}(\{{.*\}})? (\S+)$", text, re.MULTILINE):
        if all(f'{key}="{wanted}"' in found for key, wanted in labels.items()):
            total += float(value)
    return total


async def stream(client, address, **fields):
    """One streamed chat: its text, its last event, and what ended it."""
    body = {"messages": [{"role": "user", "content": ASK}], "stream": True, "max_tokens": 200,
            "temperature": 0, "stream_options": {"include_usage": True}, **fields}  # fmt: skip
    text, usage, reason, error = "", None, None, None
    async with client.stream("POST", address + "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            return "", None, None, response.status_code
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line[6:])
            error = event.get("error", error)
            usage = event.get("usage", usage)
            for choice in event.get("choices", []):
                text += choice["delta"].get("content", "")
                reason = choice["finish_reason"] or reason
    return text, usage, reason, error


def streams(address, count, act=None, **fields):
    """Many at once, and something that is done to the servers meanwhile."""

    async def go():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=600, limits=limits, trust_env=False) as client:
            calls = [asyncio.ensure_future(stream(client, address, **fields)) for _ in range(count)]
            if act is not None:
                await asyncio.to_thread(act)
            return await asyncio.gather(*calls)

    return asyncio.run(go())


@pytest.mark.parametrize(("threshold", "role"), [("inf", "small"), ("-inf", "large")])
def test_one_model_alone_token_for_token(servers, folder, threshold, role):
    addresses = servers["small"].address, servers["large"].address
    policy = '{"policy": "glimprouter", "duplicate_guard": false}'
    options = ("--threshold", threshold, "--policy", policy)
    router = route_server(*addresses, folder / "alone.log", *options)
    try:
        for ids in prompts(4)[:2]:
            body = {"prompt": list(ids), "max_tokens": 320, "temperature": 0, "route": True}
            answer = post(router.address, body, "/v1/completions").json()
            expected = alone(role, ids)
            assert answer["choices"][0]["text"] == vocabulary().decode(
                [i for i in expected if i not in vocabulary().eos_ids]
            )
            assert answer["usage"]["completion_tokens"] == len(expected)
            assert answer["usage"]["models"][role]["tokens"] == len(expected)
    finally:
        router.stop()


def test_chat_completion_route_and_usage(router):
    answer = ask(router.address, temperature=0)
    usage, route = answer["usage"], answer["route"]
    assert route["handover"] == "ids"
    assert usage["completion_tokens"] == sum(one["tokens"] for one in usage["models"].values())
    assert answer["choices"][0]["message"]["content"] == "".join(s["text"] for s in route["steps"])
    assert all(
        s["signal_name"] == "topk_entropy" for s in route["steps"] if s["signal"] is not None
    )
    assert "route" not in ask(router.address, temperature=0, route=False)
    again = ask(router.address, temperature=0.8, seed=7)
    same = ask(router.address, temperature=0.8, seed=7)
    assert again["choices"] == same["choices"]


def test_64_streams_at_once(router):
    whole = ask(router.address, temperature=0)["choices"][0]["message"]["content"]
    done = metric(router.address, "tokenlens_route_requests_total", outcome="done")
    found = streams(router.address, 64, max_tokens=200)
    assert [error for _, _, _, error in found] == [None] * 64
    assert {text for text, _, _, _ in found} == {whole}
    assert all(usage["completion_tokens"] > 10 for _, usage, _, _ in found)
    assert metric(router.address, "tokenlens_route_requests_total", outcome="done") == done + 64


def test_a_slow_backend_times_out_and_the_other_goes_on(router, proxies, folder):
    """Once, after the half minute that this router has, and then it is left alone."""
    # A model's first call is slow, and that of the router with patience.
    ask(router.address, temperature=0)
    impatient = route_server(
        proxies["small"].address, proxies["large"].address, folder / "slow.log",
        "--policy", MIXED, "--setting", "read_timeout=30", "--setting", "retries=0",
        "--setting", "failures=1", "--setting", "cooldown=600", "--setting", "connect_timeout=60",
    )  # fmt: skip
    try:
        ask(impatient.address, temperature=0)
        proxies["small"].mode = "hold"
        answer = ask(impatient.address, temperature=0)
        found = fallbacks(answer)
        assert "timeout" in found[0]
        assert all("left alone" in text for text in found[1:])
        assert answer["choices"][0]["message"]["content"]
        errors = "tokenlens_route_backend_errors_total"
        assert metric(impatient.address, errors, model="small", kind="timeout") == 1
        assert breakers(impatient.address) == {"small": "open", "large": "closed"}
    finally:
        impatient.stop()


@pytest.mark.parametrize(("mode", "kind"), [("truncate", "truncated"), ("malform", "malformed")])
def test_an_answer_that_is_cut_or_garbled(router, proxies, mode, kind):
    whole = ask(router.address, temperature=0)["choices"][0]["message"]["content"]
    before = metric(router.address, "tokenlens_route_backend_errors_total", kind=kind)
    proxies["large"].mode = mode
    answer = ask(router.address, temperature=0)
    assert answer["choices"][0]["message"]["content"]
    assert metric(router.address, "tokenlens_route_backend_errors_total", kind=kind) > before
    proxies["large"].mode = "pass"
    wait_until_well(router.address)
    assert ask(router.address, temperature=0)["choices"][0]["message"]["content"] == whole


def test_both_down_is_a_clear_error(router, proxies):
    for proxy in proxies.values():
        proxy.mode = "down"
    body = {"messages": [{"role": "user", "content": ASK}], "max_tokens": 50}
    for fields in ({}, {"stream": True}):
        response = post(router.address, {**body, **fields})
        assert response.status_code == 503 or response.status_code == 502
        assert "model" in response.json()["error"]["message"]

    def is_down():
        # A breaker that is due for a trial is not down.
        post(router.address, body)
        health = httpx.get(router.address + "/health", timeout=120, trust_env=False)
        return health.status_code == 503

    wait_for(is_down)


def test_a_client_that_goes_away_stops_the_models(router, proxies, servers):
    def running():
        # vLLM's gauge is as of its last step: one more is made.
        for role, one in servers.items():
            step = {"model": f"tiny-{role}", "prompt": [1], "max_tokens": 1}
            assert post(one.address, step, "/v1/completions").status_code == 200
        return sum(metric(one.address, "vllm:num_requests_running") for one in servers.values())

    def outcomes(name):
        return metric(router.address, "tokenlens_route_requests_total", outcome=name)

    async def leave(**fields):
        """Go away in the middle of the text, which is held there."""
        body = {"messages": [{"role": "user", "content": ASK}], "temperature": 0, **fields}
        async with httpx.AsyncClient(timeout=600, trust_env=False) as client:
            call = asyncio.create_task(
                client.post(router.address + "/v1/chat/completions", json=body)
            )
            await asyncio.to_thread(wait_for, lambda: proxies["small"].held == 1)
            call.cancel()

    done = outcomes("done")
    proxies["small"].mode = "hold"
    for stream in (True, False):
        cancelled, proxies["small"].budget = outcomes("cancelled"), 2000
        asyncio.run(leave(stream=stream))
        wait_for(lambda n=cancelled + 1: outcomes("cancelled") == n)
        wait_for(lambda: proxies["small"].held == 0 and running() == 0)
        assert metric(router.address, "tokenlens_route_running") == 0
    assert outcomes("done") == done


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"n": 2}, ["n:", "2"]),
        ({"logprobs": True}, ["logprobs"]),
        ({"stop": ["x"]}, ["stop"]),
        ({"temperature": -1}, ["temperature"]),
        ({"messages": []}, ["messages"]),
    ],
)
def test_what_cannot_be_carried_out_is_a_400(router, body, words):
    response = post(router.address, {"messages": [{"role": "user", "content": ASK}], **body})
    assert response.status_code == 400
    assert all(word in response.json()["error"]["message"] for word in words)


def test_specs_for_servers_without_tokenlens_are_a_400(router):
    """Stock vLLM has the field and passes over what it holds."""
    body = {"messages": [{"role": "user", "content": ASK}], "max_tokens": 8}
    spec = {"vllm_xargs": {"tokenlens": '{"methods": [{"method": "soft_thinking"}]}'}}
    response = post(router.address, {**body, **spec})
    assert response.status_code == 400
    assert "vllm_xargs" in response.json()["error"]["message"]
    assert post(router.address, body).status_code == 200


def test_a_full_queue_is_a_429(proxies, folder):
    one = route_server(
        proxies["small"].address, proxies["large"].address, folder / "queue.log", *PATIENCE,
        "--setting", "max_running=1", "--setting", "max_waiting=2",
    )  # fmt: skip

    async def go():
        async with httpx.AsyncClient(timeout=600, trust_env=False) as client:
            found = []
            for call in asyncio.as_completed(
                [stream(client, one.address, max_tokens=100) for _ in range(8)]
            ):
                found.append((await call)[3])
                if len(found) == 5:
                    # Nobody was served so far.
                    proxies["small"].mode = "pass"
            return found

    proxies["small"].mode = "hold"
    try:
        assert asyncio.run(go()) == [429] * 5 + [None] * 3
    finally:
        one.stop()


@pytest.mark.parametrize("policy", [
    {"policy": "glimprouter", "threshold": math.inf},
    {"policy": "glimprouter", "threshold": -math.inf},
    {"policy": "random", "share": 0.5},
])  # fmt: skip
def test_servers_of_text(servers, policy):
    """The same two as if they were any completion servers: text in, text out."""
    spec = {"policy": policy, "duplicate_guard": False}
    ids = prompts(2)[1]
    urls = [servers[role].address for role in ("small", "large")]
    found = route(over(urls, spec), vocabulary().decode(ids))
    assert found.trace.handover == "text"
    assert found.text == route(local(spec), ids).text


def test_the_large_model_scores_over_http(servers):
    """SpecReason, with either score, equals the models in this process."""
    ids = prompts(2)[1]
    for fields in ({"score": "likelihood", "threshold": 8.0}, VERBAL):
        spec = {"policy": {"policy": "specreason", **fields}, "duplicate_guard": False}
        targets = {role: Target(one.address) for role, one in servers.items()}
        http = HTTPSettings(read_timeout=600)
        _, router, _ = build(targets, parse_routing(spec), http, ServerSettings())
        found, expected = route(router, ids), route(local(spec), ids)
        assert found.ids == expected.ids
        scores = [[s.score for s in one.trace.steps] for one in (found, expected)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-3)
        assert len({s > fields["threshold"] for s in scores[0] if s is not None}) == 2


def written(address, seed, temperature):
    """One call of a router to a server, in its words."""

    async def go():
        backend = HTTPBackend("large", address, "tiny-turned", api="text")
        how = Sampling(temperature=temperature, top_p=None, top_k=None, seed=seed)
        ask = Ask("s", vocabulary().decode(prompts(2)[1]), 40, how)
        try:
            return "".join([chunk.text async for chunk in backend.generate(ask)])
        finally:
            await backend.close()

    return asyncio.run(go())


def test_two_tokenizers_hand_over_text_and_say_so(servers, folder):
    """The large model's vocabulary has the same words in another order."""
    others, network = turned()
    network.save_pretrained(folder / "turned")
    others.tokenizer.save_pretrained(folder / "turned")
    # Its own default is next to greedy.
    defaults = folder / "turned" / "generation_config.json"
    defaults.write_text(json.dumps({**json.loads(defaults.read_text()), "temperature": 0.01}))
    large = vllm_server(
        "turned", folder / "turned.log", path=folder / "turned", generation_config="auto"
    )
    addresses = servers["small"].address, large.address
    spec = {"policy": {"policy": "random", "share": 0.5}, "duplicate_guard": False}
    try:
        router = route_server(
            *addresses, folder / "two.log", "--policy", json.dumps(spec), *PATIENCE
        )
        try:
            ids = prompts(2)[1]
            body = {"prompt": vocabulary().decode(ids), "max_tokens": 160, "temperature": 0,
                    "seed": 0, "route": True}  # fmt: skip
            answer = post(router.address, body, "/v1/completions").json()
            # A request without a seed gets one, and may draw the same model for every step.
            chat = ask(router.address, temperature=0, seed=0)
        finally:
            router.stop()
        # What a request leaves open is the server's to decide; 1.0 it would not be.
        left, asked = (
            {written(large.address, seed, value) for seed in range(4)} for value in (None, 1.0)
        )
        assert len(left) == 1 < len(asked)
    finally:
        large.stop()
    expected = route(local(spec), ids)
    assert answer["choices"][0]["text"] == expected.text
    for trace in (answer["route"], chat["route"]):
        assert trace["handover"] == "text"
        readings = [reading for step in trace["steps"] for reading in step["readings"]]
        assert {reading["reader"] for reading in readings} == {"small", "large"}
        assert all(r["exact"] and r["read_tokens"] == r["written_tokens"] for r in readings)


def test_a_backend_is_killed_and_comes_back(router, servers, proxies, folder):
    """It takes a real server down, with every stream in the middle, and starts it again."""
    port = int(servers["small"].address.rpartition(":")[2])

    def kill():
        wait_for(lambda: proxies["small"].held == 16)
        servers["small"].stop(signal.SIGKILL)
        proxies["small"].mode = "pass"

    # Too little for any of them to come to its end.
    proxies["small"].mode, proxies["small"].budget = "hold", 16_000
    found = streams(router.address, 16, kill, max_tokens=250)
    assert [error for _, _, _, error in found] == [None] * 16
    assert all(reason in ("stop", "length") and text for text, _, reason, _ in found)
    assert fallbacks(ask(router.address, temperature=0))
    assert metric(router.address, "tokenlens_route_fallbacks_total") >= 16
    servers["small"] = vllm_server("small", folder / "small.log", port)
    wait_until_well(router.address)
    assert not fallbacks(ask(router.address, temperature=0))
    assert breakers(router.address) == {"small": "closed", "large": "closed"}


def test_the_examples_client(router):
    """The ``openai`` package, as in the example, from the environment that has it."""
    done = subprocess.run(
        [str(VLLM_PYTHON), str(ROOT / "examples" / "routing_client.py"), router.address + "/v1"],
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    content = ask(router.address, temperature=0, max_tokens=320)["choices"][0]["message"]["content"]
    assert done.stdout.startswith(content)
    assert "of the steps; hand-over: ids" in done.stdout
    assert "refused: " in done.stdout


def test_two_engines_in_one_process():
    script = Path(__file__).parent / "routing_engines.py"
    done = subprocess.run(
        [str(VLLM_PYTHON), str(script), json.dumps(prompts(4)[:3])],
        capture_output=True, text=True, timeout=900, check=False,
        env={**os.environ, **VLLM_ENVIRONMENT},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    found = json.loads(line.removeprefix("RESULT "))
    for case, role in (("small", "small"), ("large", "large"), ("probed", "small")):
        assert [ids for ids, _ in found[case]] == [alone(role, ids) for ids in prompts(4)[:3]]
    assert 0 < sum(share for _, share in found["mixed"]) < 3


STEERED = {
    "deer": {"words": ["wait"], "probe_text": "\n</think>\n\n", "probe_stops": ["zzz"],
             "threshold": 0.8},
    "dynasor": {"chunk": 24, "window": 2, "probe_text": "\n</think>\n\n", "answers": "text"},
    "latr": {"n": 3, "force": 48, "checks": [8, 16], "absolute": 0.1, "relative": 0.6},
    "concise_hint": {"hint": "9-5=4", "first": 32},
    "best_of_n": {"n": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", STEERED)
def test_controllers_keep_the_ids_that_hugging_face_does(servers, name):
    spec = {"policy": {"policy": name, **STEERED[name]}}

    async def go(backend):
        steered = Controller(backend, spec, vocabulary=vocabulary())
        found = await asyncio.gather(*(steered.run(ids, max_tokens=160) for ids in prompts(4)))
        await steered.close()
        return [(one.ids, one.trace.stopped, one.trace.forks, one.trace.probes) for one in found]

    served = HTTPBackend("large", servers["small"].address, "tiny-small", api="vllm",
                         max_length=1024)  # fmt: skip
    own = HFBackend(model("small"), vocabulary(), max_sessions=16)
    assert asyncio.run(go(served)) == asyncio.run(go(own))


def test_a_server_says_on_which_scale_its_log_probabilities_are(servers):
    async def go():
        backend = HTTPBackend("large", servers["small"].address, "tiny-small", api="vllm")
        try:
            return await backend.log_prob_scale()
        finally:
            await backend.close()

    assert asyncio.run(go()) == "raw"


def test_children_of_a_client_that_leaves_are_aborted(servers, folder):
    address = servers["small"].address
    policy = json.dumps({"policy": {"policy": "self_consistency", "n": 16}})
    process = route_server("", address, folder / "steered.log", "--policy", policy, *PATIENCE)
    try:
        body = {"prompt": list(prompts(4)[0]), "max_tokens": 900, "temperature": 1, "seed": 1,
                "controller": {"policy": "latr", "n": 16, "absolute": 0.0}}  # fmt: skip

        async def leave():
            async with httpx.AsyncClient(timeout=600, trust_env=False) as client:
                call = asyncio.ensure_future(
                    client.post(process.address + "/v1/completions", json=body)
                )
                while metric(address, "vllm:num_requests_running") < 2 and not call.done():
                    await asyncio.sleep(0.05)
                call.cancel()

        asyncio.run(leave())
        wait_for(lambda: metric(address, "vllm:num_requests_running") == 0)
        answer = post(process.address, {**body, "max_tokens": 8}, "/v1/completions")
        assert answer.status_code == 200
    finally:
        process.stop()
