"""Answers in JSON after latent thinking: a real server with a reasoning parser, and none."""

import json
import sys

import json_reasoner as reasoner
import pytest
from ports import free_port
from servers import Process
from vllm_support import environment, needs_vllm

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(1800)]


def serve(folder, *options):
    """A running server of the model that can write JSON."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(reasoner.save(folder)), "--served-model-name", "tiny"),
        *("--logits-processors", "tokenlens.vllm:TokenLens"),
        *("--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "float32"),
        *("--max-model-len", "256", "--kv-cache-memory-bytes", str(16 << 20)),
        *("--max-num-seqs", "16", "--generation-config", "vllm"),
        # The model would write blank lines for ever.
        *("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes", *options),
    ]
    return Process(command, port, folder / "log", environment=environment())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One whose grammars begin where thinking ends."""
    process = serve(tmp_path_factory.mktemp("structured"), "--reasoning-parser", "qwen3")
    try:
        yield process.address
        process.check()
    finally:
        process.stop()


HELD = {
    "json": {"response_format": reasoner.FORMAT},
    "regex": {"structured_outputs": {"regex": reasoner.REGEX}},
}


def ask(server, methods=None, index=0, door="chat/completions", **fields):
    """One request as it is on the wire."""
    import httpx

    body = {"model": "tiny", "max_tokens": 100, "temperature": 0, "seed": 3, **fields}
    body.setdefault("messages", reasoner.messages(index))
    if methods is not None:
        body["vllm_xargs"] = {"tokenlens": json.dumps({"methods": methods, "seed": 5})}
    return httpx.post(f"{server}/v1/{door}", json=body, timeout=600)


def trace(answer):
    return answer.json()["kv_transfer_params"]["tokenlens"]


def test_fifty_requests_and_the_plain_ones_are_what_they_were(server):
    def asked(methods=None, **fields):
        return ask(server, methods, logprobs=True, **fields)

    reasoner.check_fifty(asked, trace, HELD)


@pytest.mark.parametrize("field", reasoner.FORBIDDEN)
def test_what_would_be_forced_behind_the_end_is_refused_by_name(server, field):
    methods = reasoner.FORBIDDEN[field]
    for stream in (False, True):
        answer = ask(server, methods, stream=stream, **HELD["json"])
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


def test_a_prompt_whose_thinking_is_over(server):
    closed = {"chat_template_kwargs": {"enable_thinking": False}}
    answer = ask(server, reasoner.SPECS["soft"], **HELD["regex"], **closed)
    reasoner.check(reasoner.told(answer)[0]["content"], "regex")
    assert trace(answer)["counts"]["latent_steps"] == 0
    # By this the grammar would hold while the model thinks.
    early = ask(server, reasoner.SPECS["soft"], **HELD["json"], include_reasoning=False)
    assert early.status_code == 400, early.text
    assert "from the first token on" in early.text


def test_completions_and_other_markers(server):
    text = f"<|im_start|>user\n{reasoner.QUESTIONS[0]}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    held = {"prompt": text, "messages": None, "door": "completions", **HELD["json"]}
    answer = ask(server, reasoner.SPECS["soft"], **held)
    assert answer.status_code == 200, answer.text
    reasoner.check(answer.json()["choices"][0]["text"].split("</think>")[-1], "json")
    spelled = {"methods": reasoner.SPECS["soft"], "phase": {"think_end": "wait"}}
    asked = {"vllm_xargs": {"tokenlens": json.dumps(spelled)}}
    answer = ask(server, **asked, **HELD["json"])
    assert answer.status_code == 400, answer.text
    assert "response_format: got " in answer.text
    assert "reasoning parser ends thinking at the tokens [4, 126]" in answer.text
