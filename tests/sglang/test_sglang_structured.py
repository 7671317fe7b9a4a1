"""Answers in JSON after latent thinking: a real server with a reasoning parser."""

import os
import sys
from functools import partial

import json_reasoner as reasoner
import pytest
from ports import free_port
from servers import Process
from sglang_support import environment, needs_sglang

pytestmark = [needs_sglang, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One whose grammars begin where thinking ends."""
    folder, port = tmp_path_factory.mktemp("structured"), free_port()
    command = [
        *(sys.executable, "-m", "sglang.launch_server"),
        *("--model-path", str(reasoner.save(folder)), "--served-model-name", "tiny"),
        *("--enable-tokenlens", "--host", "127.0.0.1", "--port", str(port)),
        *("--device", "cpu", "--dtype", "float32", "--attention-backend", "torch_native"),
        *("--mem-fraction-static", "0.2", "--max-total-tokens", "8192"),
        *("--max-running-requests", "16", "--disable-cuda-graph", "--skip-server-warmup"),
        *("--sampling-defaults", "openai", "--context-length", "256"),
        *("--reasoning-parser", "qwen3", "--tool-call-parser", "qwen"),
        # The model would write blank lines for ever.
        "--constrained-json-disable-any-whitespace",
    ]
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    process = Process(command, port, folder / "log", "/v1/models", environment(PATH=path))
    try:
        yield process.address
        process.check()
    finally:
        process.stop()


HELD = {"json": {"response_format": reasoner.FORMAT}, "regex": {"regex": reasoner.REGEX}}


def post(server, path, body):
    import httpx

    return httpx.post(server + path, json=body, timeout=600)


def ask(server, methods=None, index=0, **fields):
    """One chat as it is on the wire."""
    body = {"model": "tiny", "max_tokens": 100, "temperature": 0, **fields}
    body.setdefault("messages", reasoner.messages(index))
    if methods is not None:
        body["custom_params"] = {"tokenlens": {"methods": methods, "seed": 5}}
    return post(server, "/v1/chat/completions", body)


def trace(answer):
    return answer.json()["choices"][0]["meta_info"]["tokenlens"]


def test_fifty_requests_and_the_plain_ones_are_what_they_were(server):
    reasoner.check_fifty(partial(ask, server), trace, HELD)


@pytest.mark.parametrize("field", reasoner.FORBIDDEN)
def test_what_would_be_forced_behind_the_end_is_refused_by_name(server, field):
    methods = reasoner.FORBIDDEN[field]
    answer = ask(server, methods, **HELD["json"])
    assert answer.status_code == 400, answer.text
    assert field in answer.text
    assert "a text that ends with the end of thinking" in answer.text
    assert ask(server, methods).status_code == 200


def test_tools_that_must_be_called_are(server):
    for choice in ("required", reasoner.NAMED):
        fields = {"tools": [reasoner.TOOL], "tool_choice": choice}
        fields["logit_bias"] = reasoner.NO_BLANKS
        answer = ask(server, reasoner.SPECS["soft, ended"], **fields)
        message, finish, _ = reasoner.told(answer)
        (call,) = message["tool_calls"]
        assert call["function"]["name"] == "f", (finish, message)
        reasoner.check(call["function"]["arguments"], "json")
        assert trace(answer)["counts"]["latent_steps"] > 3


def test_who_does_not_say_that_a_request_reasons(server):
    closed = {"chat_template_kwargs": {"enable_thinking": False}}
    answer = ask(server, reasoner.SPECS["soft"], **HELD["regex"], **closed)
    reasoner.check(reasoner.told(answer)[0]["content"], "regex")
    assert trace(answer)["counts"]["latent_steps"] == 0
    text = f"<|im_start|>user\n{reasoner.QUESTIONS[0]}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    sampling = {"temperature": 0, "max_new_tokens": 100, "regex": reasoner.REGEX}
    sampling["custom_params"] = {"tokenlens": {"methods": reasoner.SPECS["soft"], "seed": 5}}
    body = {"text": text, "sampling_params": sampling}
    early = post(server, "/generate", body)
    assert early.status_code == 400, early.text
    assert "regex: got " in early.text
    assert "from the first token on" in early.text
    answer = post(server, "/generate", {**body, "require_reasoning": True})
    assert answer.status_code == 200, answer.text
    reasoner.check(answer.json()["text"].split("</think>")[-1], "regex")
