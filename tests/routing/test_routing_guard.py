"""Who may ask the router, by what name, with what body, and for how long."""

import asyncio
import contextlib
import itertools
import json
import random
import socket
import threading

import httpx
import pytest
import uvicorn
from routing_fakes import PATIENCE, Served, wait_for
from routing_support import Scripted, vocabulary

from tokenlens.cli.route import Access
from tokenlens.routing import Router, fields
from tokenlens.routing.guard import Guard
from tokenlens.routing.listen import config
from tokenlens.routing.protocol import ChatRequest, CompletionRequest
from tokenlens.routing.server import make_app
from tokenlens.routing.service import ServerSettings
from tokenlens.spec import SpecError

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT = {"prompt": "9", "max_tokens": 5}


class Strangers(Served):
    """A router over a script, served as the command line serves it."""

    def __init__(self, keys=(), **settings):
        words = vocabulary()
        backend = Scripted(lambda text: "9</think>\n\n" if "</think>" not in text else "7")
        router = Router(
            backend, backend, "always_small", small_vocabulary=words, large_vocabulary=words
        )
        bounds = ServerSettings(**settings)
        self.bounds = bounds
        super().__init__(make_app(router, bounds, keys=keys))

    def config(self, app, port):
        return config(app, "127.0.0.1", port, self.bounds)

    def ask(self, path=TEXT, method="POST", **kwargs):
        if method == "POST" and not {"json", "content"} & set(kwargs):
            kwargs["json"] = PROMPT
        # One that is made for https takes longer to make than a request takes.
        return httpx.request(
            method, self.url + path, timeout=PATIENCE, trust_env=False, verify=False, **kwargs
        )

    def connect(self):
        return socket.create_connection(("127.0.0.1", int(self.url.rpartition(":")[2])), PATIENCE)


@pytest.fixture(scope="module")
def keyed():
    one = Strangers(("first-key", "second-key"), cors_origins=("https://page.example",))
    yield one
    one.close()


@pytest.fixture(scope="module")
def open_to_all():
    one = Strangers(allowed_hosts="router.example", max_body=4096)
    yield one
    one.close()


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer first-key", 200), ("bearer second-key", 200), ("Bearer  second-key", 200),
        (None, 401), ("Bearer", 401), ("Bearer wrong", 401), ("first-key", 401),
        ("Basic first-key", 401), ("Bearer first-key second-key", 401), ("Bearer first-ke", 401),
        ("Bearer \u00e9", 401),
    ],
)  # fmt: skip
def test_a_key_is_needed(keyed, header, status):
    headers = {} if header is None else {b"Authorization": header.encode()}
    answer = keyed.ask(headers=headers)
    assert answer.status_code == status
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "first-key" not in answer.text


def test_every_path_but_health_and_metrics_needs_it(keyed):
    for path in ("/v1/models", "/v1/models/tokenlens-route", "/", "/docs", "/openapi.json",
                 "/health/", "//health", "/v1/../health2", "/HEALTH"):  # fmt: skip
        assert keyed.ask(path, "GET").status_code == 401, path
    assert keyed.ask("/health", "GET").status_code == 200
    assert keyed.ask("/metrics", "GET").status_code == 200


@pytest.mark.parametrize(("who", "without", "with_key"), [("key", 401, 200), ("off", 401, 404)])
def test_metrics_are_for_whom_the_operator_says(who, without, with_key):
    one = Strangers(("k",), metrics=who)
    try:
        assert one.ask("/metrics", "GET").status_code == without
        headers = {"Authorization": "Bearer k"}
        assert one.ask("/metrics", "GET", headers=headers).status_code == with_key
        assert one.ask("/health", "GET").status_code == 200
    finally:
        one.close()


def test_all_keys_are_compared_in_equal_time(monkeypatch):
    """Each with each, whatever matches first, and never bytes of different lengths."""
    seen = []

    def compare(first, second):
        seen.append((len(first), len(second)))
        return first == second

    monkeypatch.setattr("hmac.compare_digest", compare)
    guard = Guard(None, keys=("a", "bb", "ccc"))
    for header in (b"Bearer a", b"Bearer ccc", b"Bearer " + b"x" * 999, b"Basic a"):
        seen.clear()
        guard._is_key(header)
        assert seen == [(32, 32)] * 3


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("127.0.0.1:9", 200), ("localhost:8000", 200), ("LOCALHOST", 200),
        ("[::1]:80", 200), ("[::1]", 200), ("10.1.2.3:80", 200), ("router.example", 200),
        ("Router.Example.:443", 200), ("evil.example", 400), ("localhost.evil.example", 400),
        ("127.0.0.1.evil.example", 400), ("router.example.evil", 400), ("evil.example:8000", 400),
        ("", 400), ("[::1].evil.example", 400), ("router.example:80@evil.example", 400),
    ],
)  # fmt: skip
def test_a_page_of_another_name_is_turned_away(open_to_all, host, status):
    """DNS rebinding: the page's name leads here, and its browser says so."""
    for method, path in (("POST", TEXT), ("GET", "/v1/models"), ("GET", "/health")):
        answer = open_to_all.ask(path, method, headers={"Host": host})
        assert answer.status_code == status, (method, path)


def test_any_name_where_the_operator_says_so():
    one = Strangers(allowed_hosts=["*"])
    try:
        assert one.ask(headers={"Host": "evil.example"}).status_code == 200
    finally:
        one.close()


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200), ("Application/JSON; charset=UTF-8", 200),
        ("application/json; profile=x", 200), ("text/plain", 415), ("", 415),
        ("application/x-www-form-urlencoded", 415), ("multipart/form-data; boundary=x", 415),
        ("application/json; charset=utf-16", 415), ("text/plain; application/json", 415),
    ],
)  # fmt: skip
def test_only_json_is_taken(open_to_all, kind, status):
    """A page may send the other types to any server without asking it."""
    headers = {"Content-Type": kind} if kind else {}
    answer = open_to_all.ask(content=json.dumps(PROMPT).encode(), headers=headers)
    assert answer.status_code == status
    if status == 415:
        assert "application/json" in answer.json()["error"]["message"]


def test_a_compressed_body_is_not_read(open_to_all):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert open_to_all.ask(content=b"x", headers=headers).status_code == 415


def chunked(size):
    """A body without a length."""
    text = json.dumps({**PROMPT, "user": "u" * size}).encode()
    return (text[at : at + 100] for at in range(0, len(text), 100))


def test_a_body_of_unknown_length_is_read_and_bounded(open_to_all):
    headers = {"Content-Type": "application/json"}
    assert open_to_all.ask(content=chunked(10), headers=headers).status_code == 200
    endless = (b" " * 1000 for _ in itertools.count())
    answers = [
        open_to_all.ask(content=chunked(5000), headers=headers),
        open_to_all.ask(content=b"x" * 5000, headers=headers),
    ]
    assert [answer.status_code for answer in answers] == [413, 413]
    assert all("4096" in answer.json()["error"]["message"] for answer in answers)
    # One that never ends is answered, or cut off, all the same.
    with contextlib.suppress(httpx.TransportError):
        assert open_to_all.ask(content=endless, headers=headers).status_code == 413
    assert open_to_all.ask().status_code == 200


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 3000, b"nan", b'{"prompt":"9","seed":' + b"1" * 3000 + b"}",
             b'{"prompt":"\xff"}', b'"x"', b"null", b'{"prompt":"\\ud800"}'],
)  # fmt: skip
def test_what_is_no_request_is_a_400(open_to_all, body):
    headers = {"Content-Type": "application/json"}
    answer = open_to_all.ask(content=body, headers=headers)
    assert answer.status_code == 400
    assert len(answer.text) < 1000


def test_bodies_together_are_bounded():
    """Several that are not finished hold what they sent; then others wait outside."""
    one = Strangers(max_held=1 << 20, max_body=1 << 21, body_timeout=600)
    head = f"POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {1 << 21}\r\n\r\n"
    slow = one.connect()
    try:
        slow.sendall(head.encode() + b" " * ((1 << 20) + 4096))
        wait_for(lambda: one.ask().status_code == 503)
        assert one.ask("/health", "GET").status_code == 200
        slow.close()
        wait_for(lambda: one.ask().status_code == 200)
    finally:
        slow.close()
        one.close()


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"", b""),
        (b"POST /v1/compl", b""),
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n", b""),
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
         b"Content-Length: 50\r\n\r\n{", b"408"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
         b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", b"408"),
        # a body behind an answer that did not wait for it
        (b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{", b"404"),
        # the beginning of another request behind one that was answered
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea", b"200"),
    ],
)  # fmt: skip
def test_who_sends_half_is_not_waited_for(said, status, monkeypatch):
    monkeypatch.setattr("tokenlens.routing.listen.KEEP_ALIVE", 0.2)
    one = Strangers(header_timeout=0.2, body_timeout=0.2)
    connection = one.connect()
    try:
        connection.sendall(said)
        # Until the server closes; it times out where it does not.
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert answer.split(b" ")[1:2] == ([status] if status else [])
    finally:
        connection.close()
        one.close()


def test_a_connection_that_is_used_stays():
    """The time is for headers, not for a connection or an answer."""
    one = Strangers(header_timeout=0.3)

    async def go():
        async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
            found = []
            for _ in range(4):
                found.append(await client.post(one.url + TEXT, json=PROMPT))
                await asyncio.sleep(0.2)
            return {r.extensions["network_stream"].get_extra_info("client_addr") for r in found}

    try:
        assert len(asyncio.run(go())) == 1
    finally:
        one.close()


def test_without_the_timer_it_would_wait():
    """The guard switched off: uvicorn's own protocol holds half a request for good."""
    one = Strangers.__new__(Strangers)
    one.config = lambda app, port: uvicorn.Config(app, port=port, log_level="warning")
    Served.__init__(one, make_app(Router(*[Scripted(lambda text: "")] * 2,
                    small_vocabulary=vocabulary(), large_vocabulary=vocabulary()),
                    ServerSettings(header_timeout=0.1)))  # fmt: skip
    connection = one.connect()
    try:
        connection.sendall(b"POST /v1/compl")
        connection.settimeout(1.0)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    finally:
        connection.close()
        one.close()


def preflight(origin):
    return {"Origin": origin, "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip


def test_a_page_may_ask_where_the_operator_says_so(keyed, open_to_all):
    answer = keyed.ask(CHAT, "OPTIONS", headers=preflight("https://page.example"))
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()
    # It is shown refusals, too.
    headers = {"Origin": "https://page.example"}
    refused = keyed.ask(headers=headers)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://page.example"
    for one, origin in ((keyed, "https://evil.example"), (open_to_all, "https://page.example")):
        answer = one.ask(CHAT, "OPTIONS", headers=preflight(origin))
        assert answer.status_code == 400
        assert "access-control-allow-origin" not in answer.headers


def test_one_model_by_its_name(open_to_all):
    found = open_to_all.ask("/v1/models/tokenlens-route", "GET")
    assert found.json() == open_to_all.ask("/v1/models", "GET").json()["data"][0]
    for name in ("other", "x" * 5000, "a/b"):
        answer = open_to_all.ask("/v1/models/" + name, "GET")
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "model_not_found")
        assert len(answer.text) < 500
    assert open_to_all.ask("/nowhere", "GET").json()["error"]["code"] == 404


def test_keys_come_from_a_file_and_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text("# of the team\nfile-key\n\n  second \n")
    monkeypatch.setenv("TOKENLENS_ROUTE_API_KEY", "from-env, other-env,")
    assert Access(["given"], str(file)).api_keys() == (
        "given", "from-env", "other-env", "file-key", "second",
    )  # fmt: skip
    monkeypatch.delenv("TOKENLENS_ROUTE_API_KEY")
    assert Access().api_keys() == ()


@pytest.mark.parametrize("wrong", ["", "a b", "\u00e9", "a\tb"])
def test_keys_that_would_let_everybody_or_nobody_in(wrong, tmp_path, monkeypatch):
    for access in (Access([wrong]), Access(["good", wrong])):
        with pytest.raises(SpecError, match="api_key") as caught:
            access.api_keys()
        assert not wrong or wrong not in str(caught.value)
    (tmp_path / "keys").write_text("# none\n\n")
    with pytest.raises(SpecError, match="api_key_file"):
        Access((), str(tmp_path / "keys")).api_keys()
    monkeypatch.setenv("TOKENLENS_ROUTE_API_KEY", " ")
    with pytest.raises(SpecError, match="TOKENLENS_ROUTE_API_KEY"):
        Access().api_keys()


def test_a_file_of_keys_ends(tmp_path):
    with pytest.raises(SpecError, match="api_key_file"):
        Access((), "/dev/zero").api_keys()
    (tmp_path / "keys").write_bytes(b"\xef\xbb\xbffirst\r\nsecond\r\n")
    assert Access((), str(tmp_path / "keys")).api_keys() == ("first", "second")


def test_names_of_the_server_are_names():
    allowed = ServerSettings(allowed_hosts=["router.example", "b\u00fccher.example", "::1", "*"])
    assert allowed.allowed_hosts[1] == "xn--bcher-kva.example"
    for wrong in ("router.example:80", "https://router.example", "a/b", "a, b", "*.example"):
        with pytest.raises(ValueError, match="without scheme, port and path"):
            ServerSettings(allowed_hosts=[wrong])


def any_value(generator, depth=0):
    """A JSON value of any kind, weighted towards ends of ranges."""
    if depth < 3 and generator.random() < 0.3:
        count = generator.randint(0, 3)
        if generator.random() < 0.5:
            return [any_value(generator, depth + 1) for _ in range(count)]
        names = ["role", "content", "type", "text", "include_usage", "tokenlens", "x"]
        return {generator.choice(names): any_value(generator, depth + 1) for _ in range(count)}
    return generator.choice([
        None, True, False, 0, -1, 1, 2, 1 << 31, (1 << 63) - 1, 1 << 63, -(1 << 70), 0.0, -0.0,
        1e-300, 1e300, 0.5, "", "9", "user", "text", "x" * 300, "\u2042", "\x00", "{", "<think>",
        "</think>",
    ])  # fmt: skip


def test_no_body_is_a_fault_of_the_server(open_to_all):
    """Whatever is sent in whatever field: an answer, or a sentence that is short."""
    generator = random.Random(5)
    names = [*ChatRequest.model_fields, *CompletionRequest.model_fields, *fields.DEFAULTS, "other"]
    client = httpx.Client(base_url=open_to_all.url, timeout=PATIENCE, trust_env=False)
    for _ in range(300):
        path = generator.choice((TEXT, CHAT))
        body = {"prompt": "9"} if path == TEXT else {"messages": [{"role": "user", "content": "9"}]}
        for name in generator.choices(names, k=generator.randint(1, 3)):
            body[name] = any_value(generator)
        if body.get("max_tokens") or body.get("stream"):
            body["max_tokens"] = 3
        answer = client.post(path, json=body)
        assert answer.status_code in (200, 400), (body, answer.text)
        assert answer.status_code == 200 or len(answer.text) < 4000, body
    client.close()


def test_who_stops_reading_is_cut_off():
    """An application that never ends, and a client that takes nothing of it."""
    gone = threading.Event()

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})

        async def pump():
            while True:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
                await asyncio.sleep(0)

        pumping = asyncio.create_task(pump())
        while (await receive())["type"] != "http.disconnect":
            pass
        pumping.cancel()
        gone.set()

    one = Strangers.__new__(Strangers)
    one.bounds = ServerSettings(send_timeout=0.3)
    Served.__init__(one, app)
    connection = one.connect()
    try:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert gone.wait(PATIENCE)
    finally:
        connection.close()
        one.close()


def test_connections_beyond_the_bound_are_told_so():
    one = Strangers(max_connections=2)
    idle = one.connect()
    try:
        wait_for(lambda: one.ask("/health", "GET").status_code == 503)
        idle.close()
        wait_for(lambda: one.ask("/health", "GET").status_code == 200)
    finally:
        idle.close()
        one.close()
