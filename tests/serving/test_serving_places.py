"""Specs at wrong places, grammars by the client's names, the mark of admission: no engine."""

import asyncio
import json
import threading
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenlens.serving import admission, structure
from tokenlens.serving.places import CONTENT, QUICK, Places, check_place, ours
from tokenlens.spec import SpecError

NAMES = st.sampled_from(["extra_body", "custom_params", "vllm_xargs", "metadata", "x", "0"])
OURS = st.sampled_from(["tokenlens", "tokenlens_preset", "_tokenlens_sample", "TokenLens"])
PLACE = ("custom_params",)


def nested(path, value):
    """A mapping with a value behind a path of names; ``0`` is an entry of a list."""
    for name in reversed(path):
        value = [7, value] if name == "0" else {name: value, "other": [1, {"y": None}]}
    return value


@given(st.lists(NAMES, max_size=6), OURS)
def test_a_field_of_ours_is_found_wherever_it_is(path, name):
    body = {"root": 1, "model": nested(path, {name: "qwen3-soft"})}
    for place in (None, PLACE):
        with pytest.raises(SpecError, match=name):
            check_place(body, place)


@given(st.lists(NAMES, max_size=4), OURS)
def test_what_is_the_client_s_own_content_is_none_of_ours(path, name):
    for content in CONTENT:
        check_place({content: nested(path, {name: 1})}, None)
    check_place({"messages": [{"content": f'{{"{name}": 1}}'}], "user": name}, PLACE)


def test_the_right_place_is_the_only_one():
    check_place({"custom_params": {"tokenlens": {"methods": [{"tokenlens": 1}]}}}, PLACE)
    check_place({"custom_params": {"tokenlens_seed": 3}, "model": "tokenlens"}, PLACE)
    for name in ("tokenlens.seed", "_tokenlens_sample", "TOKENLENS"):
        with pytest.raises(SpecError, match="fields that begin with tokenlens_"):
            check_place({"custom_params": {name: 3}}, PLACE)
    assert ours("tokenlens")
    assert not ours("token_lens")
    assert not ours(7)


def test_a_deep_body_ends():
    body = {"x": 1}
    for _ in range(5000):
        body = {"x": body}
    check_place(body, None)
    # Lists have no place, and no depth: one of them inside of another ended in a RecursionError.
    listed = {"tokenlens": 1}
    for _ in range(5000):
        listed = [listed]
    with pytest.raises(SpecError, match=r"x\.tokenlens"):
        check_place({"x": listed}, None)


class Server:
    """An application that says what it got."""

    def __init__(self):
        self.bodies, self.refused = [], 0

    async def __call__(self, scope, receive, send):
        parts = []
        while True:
            message = await receive()
            parts.append(message)
            if not message.get("more_body"):
                break
        self.bodies.append(b"".join(part.get("body", b"") for part in parts))
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    def ask(self, path, body, pieces=1, method="POST"):
        """One request in pieces; the status, and the answer."""
        size = max(1, -(-len(body) // pieces))
        parts = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
        waiting = [
            {"type": "http.request", "body": part, "more_body": index + 1 < len(parts)}
            for index, part in enumerate(parts)
        ]
        waiting.append({"type": "http.disconnect"})
        sent = []

        async def receive():
            return waiting.pop(0)

        async def send(message):
            sent.append(message)

        def refused():
            self.refused += 1

        places = {"/api/generate": None, "/generate": ("sampling_params", "custom_params")}
        front = Places(self, places, refused)
        asyncio.run(front({"type": "http", "method": method, "path": path}, receive, send))
        return sent[0]["status"], sent[1]["body"]


@pytest.mark.parametrize("pieces", [1, 3, 50])
def test_a_body_is_passed_on_as_it_came_or_refused(pieces):
    server = Server()
    right = {"sampling_params": {"custom_params": {"tokenlens": "qwen3-soft"}}}
    wrong = {"custom_params": {"tokenlens": "qwen3-soft"}}
    fine = [json.dumps(right).encode(), b"", b"tokenlens, but not JSON", b"[" * 100_000]
    for body in fine:
        assert server.ask("/generate", body, pieces)[0] == 200
    assert server.bodies == fine
    status, answer = server.ask("/prefix/generate/", json.dumps(wrong).encode(), pieces)
    assert status == 400
    error = json.loads(answer)
    assert error["param"] == "custom_params.tokenlens" == error["error"]["param"]
    assert "only" not in error["message"]
    assert "sampling_params.custom_params.tokenlens" in error["message"]
    # The first end that fits counts: this one carries none.
    assert server.ask("/api/generate", json.dumps(right).encode(), pieces)[0] == 400
    assert server.ask("/elsewhere", json.dumps(right).encode(), pieces)[0] == 400
    assert server.refused == 3
    assert server.ask("/generate", json.dumps(wrong).encode(), pieces, "GET")[0] == 200


def test_a_large_body_is_looked_at_off_the_event_loop(monkeypatch):
    threads = []
    look = Places._problem

    def problem(self, path, body):
        threads.append(threading.current_thread())
        return look(self, path, body)

    monkeypatch.setattr(Places, "_problem", problem)
    server = Server()
    large = json.dumps({"x": ["y"] * QUICK, "tokenlens": 1}).encode()
    assert server.ask("/generate", large)[0] == 400
    assert server.ask("/generate", b'{"tokenlens": 1}')[0] == 400
    assert [thread is threading.main_thread() for thread in threads] == [False, True]


def test_an_error_about_a_place_is_short():
    with pytest.raises(SpecError) as caught:
        check_place({"x" * 10_000: {"tokenlens": "y" * 10_000}}, None)
    assert len(str(caught.value)) < 400


STRICT = {"type": "function", "function": {"name": "f", "strict": True}}


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "response_format"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format"),
        ({"tool_choice": "required", "regex": "what the server made of it"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": "auto", "tools": [{}, STRICT]}, "tools[1].function.strict"),
        ({"tools": [{"name": "f", "strict": True}]}, "tools[0].strict"),
        ({"tool_choice": {"type": "auto"}, "regex": "a+"}, "regex"),
        ({"parallel_tool_calls": False, "tools": [{}]}, "parallel_tool_calls"),
        ({"tools": [{}], "text": "plain"}, "tools"),
    ],
)
def test_a_grammar_has_the_name_that_the_client_wrote(request_, field):
    as_model = SimpleNamespace(**request_)
    for request in (request_, as_model):
        error = structure.problem(request, ("regex", "json_schema"), "json_schema", "beside a spec")
        assert error.problems[0].field == field


def test_the_mark_is_the_engine_s_own(monkeypatch):
    monkeypatch.delenv(admission.VARIABLE, raising=False)
    asked = {"tokenlens": "{}"}
    for forged in (None, "", "1", 7, ["x"]):
        assert not admission.is_admitted({**asked, admission.ADMITTED_KEY: forged})
    marked = admission.marked(asked)
    assert admission.is_admitted(marked)
    assert not admission.is_admitted(asked)
    assert admission.secret() == marked[admission.ADMITTED_KEY]
    # Another engine's mark, and no mark at all, are nothing.
    monkeypatch.setenv(admission.VARIABLE, "another")
    assert not admission.is_admitted(marked)
    monkeypatch.setenv(admission.VARIABLE, "")
    assert not admission.is_admitted({**asked, admission.ADMITTED_KEY: ""})
