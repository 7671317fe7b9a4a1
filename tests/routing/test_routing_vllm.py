"""The router server in front of two real vLLM servers, with everything that can go wrong."""

import asyncio
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from routing_servers import VLLM_PYTHON, Proxy, route_server, vllm_server
from routing_support import alone, prompts, vocabulary

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not VLLM_PYTHON.exists(), reason="make .venv-vllm first"),
]

PATIENCE = (
    "--setting", "read_timeout=2", "--setting", "connect_timeout=1", "--setting", "cooldown=1",
    "--setting", "backoff=0.05", "--setting", "retries=1",
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
    """A router over the proxies, with a mixed policy and little patience."""
    started = route_server(
        proxies["small"].address, proxies["large"].address, folder / "route.log",
        "--policy", MIXED, *PATIENCE,
    )  # fmt: skip
    yield started
    started.stop()


@pytest.fixture(scope="module")
def patient(servers, folder):
    """A router as it comes, on the models themselves: a crowd on a processor takes its time."""
    addresses = servers["small"].address, servers["large"].address
    started = route_server(
        *addresses, folder / "patient.log", "--policy", MIXED, "--setting", "cooldown=1"
    )
    yield started
    started.stop()


@pytest.fixture(autouse=True)
def passing(request):
    """Every test begins and ends with servers that answer, and closed breakers."""
    yield
    if "proxies" in request.fixturenames:
        for proxy in request.getfixturevalue("proxies").values():
            proxy.mode = "pass"
    if "router" in request.fixturenames:
        wait_until_well(request.getfixturevalue("router").address)


def wait_until_well(address):
    """Until both models are used again and no breaker is open; a model's first call is slow."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        body = {"messages": [{"role": "user", "content": ASK}], "route": True, "max_tokens": 200}
        response = post(address, body)
        well = response.status_code == 200 and not fallbacks(response.json())
        if well and set(breakers(address).values()) == {"closed"}:
            return
        time.sleep(0.3)
    raise AssertionError("the router has not recovered")


def post(address, body, path="/v1/chat/completions"):
    return httpx.post(address + path, json=body, timeout=120, trust_env=False)


def ask(address, **fields):
    """One chat, whole, with its route."""
    body = {"messages": [{"role": "user", "content": ASK}], "route": True, "max_tokens": 200}
    response = post(address, {**body, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def breakers(address):
    return httpx.get(address + "/health", timeout=30, trust_env=False).json()["breakers"]


def fallbacks(answer):
    return [s["fallback"] for s in answer["route"]["steps"] if s["fallback"]]


def metric(address, name, **labels):
    text = httpx.get(address + "/metrics", timeout=30, trust_env=False).text
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
    """Many at once, and something that is done to the servers in the middle."""

    async def go():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=600, limits=limits, trust_env=False) as client:
            calls = [asyncio.ensure_future(stream(client, address, **fields)) for _ in range(count)]
            if act is not None:
                await asyncio.sleep(1.5)
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


def test_64_streams_at_once(patient):
    whole = ask(patient.address, temperature=0)["choices"][0]["message"]["content"]
    done = metric(patient.address, "tokenlens_route_requests_total", outcome="done")
    found = streams(patient.address, 64, max_tokens=200)
    assert [error for _, _, _, error in found] == [None] * 64
    assert {text for text, _, _, _ in found} == {whole}
    assert all(usage["completion_tokens"] > 10 for _, usage, _, _ in found)
    assert metric(patient.address, "tokenlens_route_requests_total", outcome="done") == done + 64


def test_a_slow_backend_times_out_and_the_other_goes_on(router, proxies):
    before = metric(router.address, "tokenlens_route_backend_errors_total", kind="timeout")
    proxies["small"].mode = "slow"
    answer = ask(router.address, temperature=0)
    assert any("timeout" in text or "open" in text for text in fallbacks(answer))
    assert metric(router.address, "tokenlens_route_backend_errors_total", kind="timeout") > before


@pytest.mark.parametrize(("mode", "kind"), [("truncate", "truncated"), ("malform", "malformed")])
def test_an_answer_that_is_cut_or_garbled(router, proxies, mode, kind):
    whole = ask(router.address, temperature=0)["choices"][0]["message"]["content"]
    before = metric(router.address, "tokenlens_route_backend_errors_total", kind=kind)
    proxies["large"].mode = mode
    answer = ask(router.address, temperature=0)
    assert answer["choices"][0]["message"]["content"]
    assert metric(router.address, "tokenlens_route_backend_errors_total", kind=kind) > before
    proxies["large"].mode = "pass"
    time.sleep(1.2)
    ask(router.address, temperature=0)
    assert ask(router.address, temperature=0)["choices"][0]["message"]["content"] == whole


def test_both_down_is_a_clear_error(router, proxies):
    for proxy in proxies.values():
        proxy.mode = "down"
    body = {"messages": [{"role": "user", "content": ASK}], "max_tokens": 50}
    for fields in ({}, {"stream": True}):
        response = post(router.address, {**body, **fields})
        assert response.status_code == 503 or response.status_code == 502
        assert "model" in response.json()["error"]["message"]
    for _ in range(4):
        post(router.address, body)
    assert httpx.get(router.address + "/health", timeout=30, trust_env=False).status_code == 503


def test_a_client_that_goes_away_stops_the_models(router, proxies, servers):
    def running():
        return sum(
            metric(one.address, "vllm:num_requests_running") for one in servers.values()
        ) + metric(router.address, "tokenlens_route_running")

    body = {"messages": [{"role": "user", "content": ASK}], "max_tokens": 900, "stream": True,
            "temperature": 1.5}  # fmt: skip
    cancelled = metric(router.address, "tokenlens_route_requests_total", outcome="cancelled")
    address = router.address + "/v1/chat/completions"
    with httpx.stream("POST", address, json=body, timeout=60, trust_env=False) as response:
        next(response.iter_lines())
    whole = {**body, "stream": False}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(address, json=whole, timeout=0.3, trust_env=False)
    deadline = time.monotonic() + 20
    while running() > 0 and time.monotonic() < deadline:
        time.sleep(0.3)
    assert running() == 0
    after = metric(router.address, "tokenlens_route_requests_total", outcome="cancelled")
    assert after == cancelled + 2


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


def test_a_full_queue_is_a_429(proxies, folder):
    one = route_server(
        proxies["small"].address, proxies["large"].address, folder / "queue.log",
        "--setting", "max_running=1", "--setting", "max_waiting=2",
    )  # fmt: skip
    try:
        found = streams(one.address, 8, max_tokens=100)
        assert sum(error == 429 for _, _, _, error in found) == 5
        assert sum(error is None for _, _, _, error in found) == 3
    finally:
        one.stop()


def test_a_server_of_text(servers, folder):
    """The same two as if they were any completion servers: text in, text out."""
    router = route_server(
        servers["small"].address, servers["large"].address, folder / "text.log",
        "--small-api", "text", "--large-api", "text", "--policy", MIXED,
    )  # fmt: skip
    try:
        answer = post(
            router.address,
            {"prompt": vocabulary().decode(prompts(4)[1]), "max_tokens": 60, "temperature": 0,
             "route": True},
            "/v1/completions",
        ).json()  # fmt: skip
        assert answer["route"]["handover"] == "text"
        assert len(answer["route"]["steps"]) > 2
    finally:
        router.stop()


def test_a_backend_is_killed_and_comes_back(patient, servers, folder):
    """Last: it takes a real server down and starts it again."""
    port = int(servers["small"].address.rpartition(":")[2])
    found = streams(
        patient.address, 16, lambda: servers["small"].stop(signal.SIGKILL), max_tokens=250
    )
    assert [error for _, _, _, error in found] == [None] * 16
    assert all(reason in ("stop", "length") and text for text, _, reason, _ in found)
    assert fallbacks(ask(patient.address, temperature=0))
    assert metric(patient.address, "tokenlens_route_fallbacks_total") > 0
    servers["small"] = vllm_server("small", folder / "small.log", port)
    wait_until_well(patient.address)
    assert not fallbacks(ask(patient.address, temperature=0))
    assert breakers(patient.address) == {"small": "closed", "large": "closed"}


def test_two_engines_in_one_process():
    script = Path(__file__).parent / "routing_engines.py"
    done = subprocess.run(
        [str(VLLM_PYTHON), str(script), json.dumps(prompts(4)[:3])],
        capture_output=True, text=True, timeout=900, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
             "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    found = json.loads(line.removeprefix("RESULT "))
    for case, role in (("small", "small"), ("large", "large"), ("probed", "small")):
        assert [ids for ids, _ in found[case]] == [alone(role, ids) for ids in prompts(4)[:3]]
    assert 0 < sum(share for _, share in found["mixed"]) < 3
