"""What models' servers may send, and what of it a client sees; whom the router trusts."""

import asyncio
import gzip
import json
import logging
import subprocess
import tracemalloc

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from routing_fakes import PATIENCE, Served, fake_server
from routing_support import byte_level_chat, prompts, vocabulary
from test_routing_text import local, over

from tokenlens.routing import Ask, BackendError, RouterVocabulary, Sampling
from tokenlens.routing import http as routing_http
from tokenlens.routing.http import HTTPBackend, HTTPSettings
from tokenlens.routing.serve import Target, build, endpoints
from tokenlens.routing.server import make_app
from tokenlens.routing.service import ServerSettings
from tokenlens.spec import SpecError

SECRET = "secret-of-the-backend /srv/models/private"
ONCE = HTTPSettings(retries=0, read_timeout=600, connect_timeout=60)


def fake(answer, models=None, tokenize=None):
    """A fake server whose completions are what a function says."""
    app = FastAPI()
    app.state.asked = []

    @app.get("/v1/models")
    async def listed():
        return {"data": [models or {"id": "fake", "owned_by": "somebody"}]}

    @app.post("/tokenize")
    async def tokens(request: Request):
        return tokenize(await request.json()) if tokenize else Response(status_code=404)

    @app.post("/v1/completions")
    async def completions(request: Request):
        app.state.asked.append(await request.json())
        return answer(app.state.asked[-1])

    return app


def call(url, work=None, api="text", **settings):
    """One call to a server."""

    async def go():
        backend = HTTPBackend("small", url, "fake", api=api,
                              settings=ONCE.model_copy(update=settings))  # fmt: skip
        try:
            if work is not None:
                return await work(backend)
            return [chunk async for chunk in backend.generate(Ask("s", "x", 10, Sampling()))]
        finally:
            await backend.close()

    return asyncio.run(go())


def event(text="x", finish=None):
    return b"data: " + json.dumps({"choices": [{"text": text, "finish_reason": finish}]}).encode()


def endless(*first):
    """A body that never ends; what it gave is counted."""

    async def pieces():
        for piece in first:
            yield piece
        while True:
            endless.given += 1 << 16
            yield b"x" * (1 << 16)
            # Other tasks of the server get their turn.
            await asyncio.sleep(0)

    endless.given = 0
    return pieces()


ENDLESS = {
    "error": lambda body: StreamingResponse(endless(), 400),
    "failure": lambda body: StreamingResponse(endless(), 503),
    "line": lambda body: StreamingResponse(endless(b"data: ")),
    "no event": lambda body: StreamingResponse(endless(b"x")),
    "json": lambda body: StreamingResponse(endless(b'{"choices": "')),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_an_endless_answer_is_read_with_a_bound(kind, monkeypatch):
    monkeypatch.setattr("tokenlens.routing.reading.MAX_BODY", 4 << 20)
    server = Served(fake(ENDLESS[kind]))
    work = None
    if kind == "json":

        async def work(backend):
            return await backend.log_probs("s", (1, 2), [3])

    tracemalloc.start()
    try:
        with pytest.raises(BackendError) as caught:
            call(server.url, work)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        server.close()
    assert caught.value.kind in ("refused", "failed", "malformed")
    assert peak < 32 << 20


def test_many_events_are_bounded_too():
    async def pieces():
        while True:
            yield b": a comment of a server\n\n" * 1000
            await asyncio.sleep(0)

    server = Served(fake(lambda body: StreamingResponse(pieces())))
    try:
        with pytest.raises(BackendError) as caught:
            call(server.url)
    finally:
        server.close()
    assert caught.value.kind == "malformed"
    assert "stream of more than" in caught.value.detail


def test_a_server_that_ignores_max_tokens_is_cut_off():
    async def pieces():
        while True:
            yield event("ab") + b"\n\n"
            await asyncio.sleep(0)

    server = Served(fake(lambda body: StreamingResponse(pieces())))
    try:
        chunks = call(server.url)
    finally:
        server.close()
    assert chunks[-1].finish == "length"
    assert sum(chunk.tokens for chunk in chunks) == 11


def test_what_is_compressed_is_not_unpacked():
    bomb = gzip.compress(b"\n" * (64 << 20))
    headers = {"Content-Encoding": "gzip"}
    for status in (200, 400):
        server = Served(fake(lambda body, s=status: Response(bomb, s, headers)))
        tracemalloc.start()
        try:
            with pytest.raises(BackendError) as caught:
                call(server.url)
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()
            server.close()
        assert "compressed" in caught.value.detail


def test_a_long_prompt_s_ids_in_the_first_event_are_no_fault():
    """vLLM repeats them; a line's bound grows with the prompt."""
    ids = [100_000 + i for i in range(300_000)]
    choice = {"text": "", "token_ids": [5], "prompt_token_ids": ids, "finish_reason": "length",
              "logprobs": None}  # fmt: skip
    line = f"data: {json.dumps({'choices': [choice]})}\n\n".encode()
    assert len(line) > routing_http.reading.MAX_LINE
    server = Served(fake(lambda body: Response(line)))

    async def work(backend):
        ask = Ask("s", tuple(ids), 10, Sampling())
        return [chunk async for chunk in backend.generate(ask)]

    try:
        assert call(server.url, work, api="vllm")[-1].ids == (5,)
    finally:
        server.close()


LEAKS = {
    "status": lambda body: JSONResponse({"error": {"message": SECRET}}, 400),
    "failure": lambda body: JSONResponse({"error": SECRET}, 500),
    "busy": lambda body: JSONResponse({"error": SECRET}, 429),
    "event": lambda body: Response(b'data: {"error": {"message": "' + SECRET.encode() + b'"}}\n\n'),
    "garbled": lambda body: Response(b"data: " + SECRET.encode() + b"\n\n"),
    "shape": lambda body: Response(b'data: {"choices": [{"' + SECRET.encode() + b'": 1}]}\n\n'),
    "reason": lambda body: Response(event("x", SECRET) + b"\n\n"),
}


@pytest.mark.parametrize("kind", LEAKS)
def test_a_server_s_own_words_go_to_the_log_only(kind, caplog):
    """Not into an error, not into a stream, not into a route."""
    words = vocabulary()
    good = Served(fake_server("large"))
    bad = Served(fake(LEAKS[kind]))
    router = over([bad.url, good.url], {"policy": "always_small", "duplicate_guard": False})
    for backend in router.backends.values():
        backend._settings = ONCE
    alone = over([bad.url, bad.url + "/v1/.."], {"policy": "always_small", "fallback": False})
    for backend in alone.backends.values():
        backend._settings = ONCE
    one, two = (Served(make_app(r, ServerSettings())) for r in (router, alone))
    body = {"prompt": words.decode(prompts(2)[1]), "max_tokens": 8, "temperature": 0, "route": True}
    try:
        with caplog.at_level(logging.WARNING):
            texts = [
                httpx.post(f"{served.url}/v1/completions", json={**body, "stream": stream},
                           timeout=PATIENCE, trust_env=False).text
                for served in (one, two) for stream in (True, False)
            ]  # fmt: skip
    finally:
        for served in (one, two, good, bad):
            served.close()
    assert not any("secret" in text or "private" in text for text in texts), texts
    assert any("small model" in text for text in texts)
    if kind != "shape":
        assert "secret-of-the-backend" in caplog.text


def test_the_log_holds_no_lines_of_a_server(caplog):
    words = "a\r\nWARNING forged \x1b[31m" + "y" * 100_000
    server = Served(fake(lambda body: Response(words.encode(), 500)))
    try:
        with caplog.at_level(logging.WARNING), pytest.raises(BackendError):
            call(server.url)
    finally:
        server.close()
    (record,) = [r for r in caplog.records if r.name == "tokenlens.routing.http"]
    assert "\n" not in record.getMessage()
    assert "\x1b" not in record.getMessage()
    assert len(record.getMessage()) < 3000


def test_numbers_that_are_none_never_leave_a_call():
    entries = [{"3": {"logprob": float("nan")}}]
    answer = {"choices": [{"prompt_logprobs": entries}]}
    server = Served(fake(lambda body: Response(json.dumps(answer))))

    async def work(backend):
        return await backend.log_probs("s", (1, 2), [3])

    try:
        with pytest.raises(BackendError) as caught:
            call(server.url, work)
    finally:
        server.close()
    assert caught.value.kind == "malformed"


SPEC = {"tokenlens": {"methods": [{"method": "soft_thinking"}]}}


def carrier(body):
    """A fake SGLang with tokenlens: refuses a wrong spec by its method's name."""
    asked = json.dumps(body.get("custom_params", {}))
    if "tokenlens_router_probe" in asked:
        return JSONResponse({"error": "method: got 'tokenlens_router_probe'"}, 400)
    if not body.get("stream"):
        return JSONResponse({"choices": [{"text": "x"}]})
    return Response(event("x", "stop") + b"\n\n")


def stock(body):
    """A fake SGLang without it: the field is there, and nobody reads it."""
    return JSONResponse({"choices": []}) if not body.get("stream") else carrier({"stream": True})


def sleeping(body):
    """A fake SGLang with tokenlens that was not switched on."""
    message = "custom_params: got a spec for tokenlens, but this engine was started without it"
    return JSONResponse({"error": message}, 400) if "custom_params" in body else carrier(body)


def behind(answers, owner):
    """A router's server over two fakes, and the fakes."""
    fakes = [fake(answer, {"id": "fake", "owned_by": owner}) for answer in answers]
    served = [Served(one) for one in fakes]
    targets = {role: Target(one.url) for role, one in zip(("small", "large"), served)}
    spec = local({"policy": "random", "think_end": None}).spec
    app, _, _ = build(targets, spec, ONCE, ServerSettings())
    return Served(app), served, fakes


def post(served, **fields):
    body = {"prompt": "x", "max_tokens": 4, **fields}
    return httpx.post(served.url + "/v1/completions", json=body, timeout=PATIENCE, trust_env=False)


@pytest.mark.parametrize("field", ["vllm_xargs", "custom_params"])
def test_specs_go_to_servers_that_carry_them_out(field):
    one, served, fakes = behind([carrier, carrier], "sglang")
    try:
        for _ in range(3):
            assert post(one, **{field: SPEC}).status_code == 200
        assert post(one).status_code == 200
    finally:
        for closed in (one, *served):
            closed.close()
    asked = [body for app in fakes for body in app.state.asked]
    probes = [body for body in asked if "probe" in json.dumps(body)]
    assert len(probes) == 2
    streams = [body for body in asked if body.get("stream")]
    assert [body["custom_params"] for body in streams if "custom_params" in body] == [SPEC] * 3
    assert len(streams) == 4


@pytest.mark.parametrize(
    ("answers", "owner"),
    [([carrier, stock], "sglang"), ([stock, stock], "sglang"), ([sleeping, carrier], "sglang"),
     ([carrier, carrier], "somebody")],
)  # fmt: skip
def test_specs_to_others_are_a_400(answers, owner):
    one, served, fakes = behind(answers, owner)
    try:
        answer = post(one, custom_params=SPEC)
        assert post(one).status_code == 200
    finally:
        for closed in (one, *served):
            closed.close()
    assert answer.status_code == 400
    assert "custom_params" in answer.json()["error"]["message"]
    streams = [body for app in fakes for body in app.state.asked if body.get("stream")]
    assert not any("custom_params" in body for body in streams)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"vllm_xargs": {"other": 1}}, "other"), ({"custom_params": {"x" * 5000: 1}}, "xxx"),
        ({"vllm_xargs": {"tokenlens": "no-such-preset"}}, "no-such-preset"),
        ({"custom_params": {"tokenlens": 5}}, "tokenlens"),
        ({"custom_params": {**SPEC, "tokenlens_trace.level": "full"}}, "trace"),
        ({"custom_params": {"tokenlens": {"trace": {"level": "full"}}}}, "trace"),
        ({"custom_params": SPEC, "vllm_xargs": SPEC}, "both"),
        ({"custom_params": SPEC}, "small model's server"),
    ],
)  # fmt: skip
def test_what_is_no_spec_and_what_no_model_here_takes(fields, word):
    one = Served(make_app(local("always_small"), ServerSettings()))
    try:
        answer = post(one, **fields)
    finally:
        one.close()
    assert answer.status_code == 400
    assert word in answer.json()["error"]["message"]
    assert len(answer.text) < 2000


def test_a_server_s_kind_context_and_bos_are_asked_for(tmp_path):
    words = RouterVocabulary(byte_level_chat("{{ bos_token }}{{ messages[0].content }}", False))
    words.tokenizer.save_pretrained(tmp_path)
    bos = words.tokenizer.bos_token_id

    def tokenize(body):
        # llama.cpp reads `content`, vLLM and SGLang read `prompt`
        assert body["content"] == body["prompt"]
        return {"tokens": [bos, *words.encode(body["content"])]}

    listed = {"id": "fake", "owned_by": "sglang", "max_model_len": 77}
    fakes = [fake(carrier, listed, tokenize), fake(carrier)]
    served = [Served(one) for one in fakes]
    targets = {role: Target(one.url, tokenizer=str(tmp_path))
               for role, one in zip(("small", "large"), served)}  # fmt: skip
    try:
        found = endpoints(targets, ONCE)
        assert [one.lead for one in found.values()] == ["<s>", None]
        assert [one.max_length for one in found.values()] == [77, None]
        assert [one.specs_in for one in found.values()] == ["custom_params", None]
        spec = local({"policy": "random", "think_end": None}).spec
        app, _, _ = build(targets, spec, ONCE, ServerSettings())
        one = Served(app)
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "seed": 0}
        answer = httpx.post(one.url + "/v1/chat/completions", json=body, timeout=PATIENCE,
                            trust_env=False)  # fmt: skip
        one.close()
    finally:
        for closed in served:
            closed.close()
    assert answer.status_code == 200
    # The first server puts one before it, the second does not.
    assert {b["prompt"] for b in fakes[0].state.asked} <= {"hi", "hix"}
    assert {b["prompt"] for b in fakes[1].state.asked} <= {"<s>hi", "<s>hix"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A certificate of one's own for 127.0.0.1, made by openssl; none where that is missing."""
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
               "-nodes", "-keyout", "key.pem", "-out", "ca.pem", "-days", "2", "-subj",
               "/CN=a router's test", "-addext", "subjectAltName=IP:127.0.0.1"]  # fmt: skip
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    except OSError:
        pytest.skip("no openssl")
    return folder


class Encrypted(Served):
    """Behind TLS."""

    def __init__(self, app, folder):
        self._folder = folder
        super().__init__(app)
        self.url = self.url.replace("http:", "https:")

    def config(self, app, port):
        return uvicorn.Config(app, port=port, log_level="critical",
                              ssl_keyfile=str(self._folder / "key.pem"),
                              ssl_certfile=str(self._folder / "ca.pem"))  # fmt: skip


def test_an_authority_of_one_s_own_is_trusted_where_it_is_named(authority):
    server = Encrypted(fake(carrier), authority)
    try:
        with pytest.raises(BackendError) as caught:
            call(server.url)
        assert caught.value.kind == "unreachable"
        assert "certificate" in caught.value.detail.lower()
        assert call(server.url, ca_file=str(authority / "ca.pem"))[-1].text == "x"
    finally:
        server.close()


@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_a_file_without_certificates_is_an_error(tmp_path, content):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SpecError, match="ca_file"):
        routing_http.trusted(str(path))
