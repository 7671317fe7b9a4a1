"""SGLang with several tokenizer workers: processes in which it loads no plugins."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from guide_commands import command_of
from ports import free_port
from servers import Process
from sglang_support import environment, needs_sglang
from test_sglang_server import MESSAGES, MODEL, OPENED, SOFT, generate, post, settled

pytestmark = [needs_sglang, pytest.mark.slow, pytest.mark.timeout(1800)]

HERE = Path(__file__).parent
ALLOWED = ("soft_thinking", "gumbel_noise", "thinking_budget", "pulse_gate")
COCONUT = {"tokenlens": {"methods": [{"method": "coconut"}]}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A guide's command with two tokenizer workers; its operator has set bounds."""
    port = free_port()
    log = tmp_path_factory.mktemp("workers") / "log"
    command = [
        *command_of("sglang.launch_server", MODEL),
        *("--served-model-name", "tiny", "--port", str(port)),
        *("--tokenizer-worker-num", "2"),
        *("--tokenlens-max-trace-steps", "6", "--tokenlens-allow", *ALLOWED),
        *("--device", "cpu", "--dtype", "float32", "--attention-backend", "torch_native"),
        *("--mem-fraction-static", "0.2", "--max-total-tokens", "16384", "--disable-cuda-graph"),
        *("--max-running-requests", "8", "--skip-server-warmup", "--enable-metrics"),
        *("--sampling-defaults", "openai", "--context-length", "512"),
        *("--tool-call-parser", "qwen25"),
    ]
    # A worker that imports slowly, on a busy machine, is not a dead one.
    patience = {"SGLANG_UVICORN_WORKER_HEALTHCHECK_TIMEOUT": "600"}
    process = Process(command, port, log, "/v1/models", environment(**patience))
    try:
        yield process
        process.check()
    finally:
        process.stop()


def several(ask, count=6):
    """The same request often enough, side by side, that both workers answer some."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: ask(), range(count)))


def test_every_worker_admits_and_hands_back_traces(server):
    full = {"tokenlens": {"preset": "tiny-soft", "trace": {"level": "full"}}}
    for answer in several(lambda: generate(server.address, full).json()):
        trace = answer["meta_info"]["tokenlens"]
        # One trace, within the operator's bound; not the raw reports.
        assert trace["counts"]["tokens"] == answer["meta_info"]["completion_tokens"]
        assert trace["counts"]["latent_steps"] > 0
        assert len(trace["steps"]) == 6
    both = generate(server.address, {"tokenlens": "tiny-gumbel"}, n=2, temperature=1.0).json()
    assert both[0]["output_ids"] != both[1]["output_ids"]


def test_every_worker_has_the_method_of_the_guide_s_command(server):
    params = {"tokenlens": {"methods": [{"method": "pulse_gate", "latent": 2}]}}
    for answer in several(lambda: generate(server.address, params).json()):
        assert answer["meta_info"]["tokenlens"]["counts"]["latent_steps"] > 0


@pytest.mark.parametrize(
    ("params", "sampling", "words"),
    [
        (COCONUT, {}, ["methods[0].method", "'coconut'", "on this server"]),
        ({"tokenlens": "tiny-no-thinking"}, {}, ["methods[0].method", "on this server"]),
        ({"tokenlens": "tiny-sofd"}, {}, ["preset", "tiny-sofd"]),
        (SOFT, {"regex": "a+"}, ["regex", "a+"]),
        ({**SOFT, "_tokenlens_admitted": "x"}, {}, ["_tokenlens_admitted"]),
    ],
)
def test_every_worker_refuses(server, params, sampling, words):
    for answer in several(lambda: generate(server.address, params, **sampling)):
        assert answer.status_code == 400, answer.text
        assert all(word in answer.text for word in words), answer.text


def test_what_no_front_end_of_ours_admitted_fails_alone(server):
    sampling = {"temperature": 0, "max_new_tokens": 4}
    requests = {
        "plain": sampling,
        "coconut": {**sampling, "custom_params": COCONUT},
        "right": {**sampling, "custom_params": SOFT},
        "unreadable": {**sampling, "custom_params": {"tokenlens": {"methods": 7}}},
        "forged": {**sampling, "custom_params": {**COCONUT, "_tokenlens_admitted": "1"}},
        "plain again": sampling,
    }
    command = [sys.executable, str(HERE / "sglang_stranger.py"), str(server.process.pid)]
    done = subprocess.run(
        [*command, json.dumps(requests)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert "found " in done.stdout, done.stderr[-4000:]
    found = json.loads(done.stdout.rsplit("found ", 1)[1].splitlines()[0])
    # It is what it says: nothing of ours is in its process.
    assert not found["wrapped"]
    assert len(found["plain"]["ids"]) == 4
    assert found["plain again"] == found["plain"]
    for name in ("coconut", "right", "unreadable", "forged"):
        assert "no front end with tokenlens has admitted" in found[name]["error"], (name, found)
    assert generate(server.address, SOFT).json()["meta_info"]["tokenlens"]


CHAT = {"model": "tiny", "messages": MESSAGES, "max_tokens": 4, "temperature": 0}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
STRICT = {"type": "function", "function": {**TOOL["function"], "strict": True}}
NAMED = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("tool_choice", {"tools": [TOOL], "tool_choice": "required"}),
        ("tool_choice", {"tools": [TOOL], "tool_choice": NAMED}),
        ("tools[1].function.strict", {"tools": [TOOL, STRICT]}),
        ("response_format", {"response_format": {"type": "json_object"}}),
        ("regex", {"regex": "a+"}),
        ("ebnf", {"ebnf": 'root ::= "a"'}),
    ],
)
def test_a_grammar_is_refused_by_the_name_that_the_client_wrote(server, field, fields):
    body = {**CHAT, **fields}
    refused = post(server.address, "/v1/chat/completions", {**body, "custom_params": SOFT})
    assert refused.status_code == 400, refused.text
    assert refused.json()["message"].startswith(f"{field}: got "), refused.text
    # A spec without methods holds nobody up.
    empty = {**body, "custom_params": {"tokenlens": {"methods": []}}}
    assert post(server.address, "/v1/chat/completions", empty).status_code == 200


def test_tools_that_are_no_grammar_are_fine(server):
    for fields in ({"tools": [TOOL]}, {"response_format": {"type": "text"}}):
        body = {**CHAT, **fields, "custom_params": SOFT}
        answer = post(server.address, "/v1/chat/completions", body)
        assert answer.status_code == 200, answer.text


TEXT = {"model": "tiny", "prompt": OPENED, "max_tokens": 2}
RAW = {"text": OPENED, "sampling_params": {"max_new_tokens": 2}}
CARRIED = {"custom_params": SOFT}


@pytest.mark.parametrize(
    ("door", "body", "place"),
    [
        ("/v1/chat/completions", {**CHAT, **SOFT}, "tokenlens"),
        ("/v1/chat/completions", {**CHAT, "extra_body": CARRIED}, "extra_body.custom_params"),
        ("/v1/chat/completions", {**CHAT, "vllm_xargs": SOFT}, "vllm_xargs.tokenlens"),
        ("/v1/chat/completions", {**CHAT, "sampling_params": CARRIED}, "sampling_params"),
        ("/v1/chat/completions", {**CHAT, "chat_template_kwargs": SOFT}, "chat_template_kwargs"),
        ("/v1/completions", {**TEXT, "tokenlens_preset": "tiny-soft"}, "tokenlens_preset"),
        ("/v1/completions", {**TEXT, "custom_params": CARRIED}, "custom_params.custom_params"),
        ("/generate", {**RAW, **CARRIED}, "custom_params.tokenlens"),
        ("/generate", {**RAW, **SOFT}, "tokenlens"),
        ("/generate", {**RAW, "sampling_params": SOFT}, "sampling_params.tokenlens"),
        ("/v1/messages", {**CHAT, **CARRIED}, "this endpoint carries no spec"),
        ("/v1/messages", {**CHAT, **CARRIED, "stream": True}, "this endpoint carries no spec"),
        ("/v1/responses", {"model": "tiny", "input": "x", **CARRIED}, "carries no spec"),
        ("/api/chat", {"model": "tiny", "messages": MESSAGES, "options": SOFT}, "carries no spec"),
        ("/api/generate", {"model": "tiny", "prompt": "x", **RAW, **CARRIED}, "carries no spec"),
        ("/invocations", {**CHAT, **SOFT}, "tokenlens"),
    ],
)
def test_a_spec_at_a_wrong_place_is_refused(server, door, body, place):
    answer = post(server.address, door, body)
    assert answer.status_code == 400, answer.text
    assert place in answer.text


def test_talking_about_tokenlens_is_no_spec(server):
    schema = {"type": "object", "properties": {"tokenlens": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    said = [{"role": "user", "content": '"tokenlens": "tiny-soft"'}]
    answer = post(
        server.address, "/v1/chat/completions", {**CHAT, "messages": said, "tools": [tool]}
    )
    assert answer.status_code == 200, answer.text
    assert "meta_info" not in answer.json()["choices"][0]


def test_gauges_are_at_zero_when_nothing_runs(server):
    import httpx

    def leave(_):
        body = {"text": OPENED, "sampling_params": {"max_new_tokens": 400, "ignore_eos": True}}
        body["sampling_params"]["custom_params"] = SOFT
        with httpx.stream("POST", server.address + "/generate", json={**body, "stream": True}) as r:
            next(r.iter_lines())

    several(lambda: generate(server.address, SOFT))
    several(lambda: generate(server.address, {"tokenlens": "tiny-sofd"}))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(leave, range(4)))
    generate(server.address, SOFT, max_new_tokens=2)
    found = settled(server.address)
    assert found["tokenlens_slots_in_use"] == 0
    assert found["tokenlens_history_pages_in_use"] == 0
    assert found["tokenlens_latent_total"] > 0
