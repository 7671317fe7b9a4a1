"""The OpenAI-compatible server, started for real and driven with the ``openai`` client.

It is the server of ``examples/vllm_serve.sh``, and the example's client asks it too.
"""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import steered
from ports import free_port
from servers import Process
from vllm_support import environment, needs_vllm

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "tokenlens" / "assets" / "tiny-reasoner-small"
MESSAGES = [{"role": "user", "content": "make 24 using 3,5,7,2"}]
OPENED = "<|im_start|>user\nmake 24 using 3,5,7,2<|im_end|>\n<|im_start|>assistant\n<think>\n"
"""A prompt whose template has opened the thinking."""
SOFT = {"tokenlens_preset": "tiny-soft"}
EAST = {"tokenlens_east.file": "east"}
"""A vector of the operator's behind the first layer."""


BOUNDS = {"max_entries": 32, "max_trace_steps": 20, "history_mib": 256}
ALLOWED = [
    *("soft_thinking", "gumbel_noise", "no_thinking", "pulse_gate", "faulty", "tripwire", "east")
]
CONFIG = {"methods": ["pulse_gate", "faulty"], "allow": ALLOWED, **BOUNDS}
"""The example's, with methods from outside; no_echo is installed too, and not allowed."""


def surroundings():
    """The environment of processes that find ``python`` by its name."""
    folder = str(Path(sys.executable).parent)
    return {**environment(), "PATH": folder + os.pathsep + os.environ["PATH"]}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The base address of a running server; its operator has set bounds."""
    import conformance_models as models

    port, files = free_port(), models.vector_files("east")
    log = tmp_path_factory.mktemp("server") / "log"
    command = [
        *("sh", str(ROOT / "examples" / "vllm_serve.sh"), str(MODEL)),
        *("--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)),
        *("--enforce-eager", "--dtype", "float32", "--max-model-len", "512"),
        *("--kv-cache-memory-bytes", str(32 << 20), "--max-num-seqs", "32"),
        *("--generation-config", "vllm"),
        *("--additional-config", json.dumps({"tokenlens": {**CONFIG, "files": files}})),
        # Tools that become grammars, and requests in tokens.
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--enable-scale-out"),
    ]
    process = Process(command, port, log, environment=surroundings())
    try:
        yield process.address
        process.check()
    finally:
        process.stop()


@pytest.fixture(scope="module")
def client(server):
    """The ordinary client."""
    import openai

    return openai.OpenAI(base_url=server + "/v1", api_key="none", timeout=600, max_retries=0)


def chat(client, xargs, **kwargs):
    """One chat completion; greedy unless told otherwise."""
    settings = {"temperature": 0, "max_tokens": 40, "messages": MESSAGES, **kwargs}
    extra = {"vllm_xargs": xargs} if xargs else None
    return client.chat.completions.create(model="tiny", extra_body=extra, **settings)


def trace_of(response):
    """The trace in a response."""
    return response.model_dump()["kv_transfer_params"]["tokenlens"]


def metrics(server):
    """Our metrics by name, summed over their labels."""
    with urllib.request.urlopen(server + "/metrics", timeout=600) as response:
        text = response.read().decode()
    found = {}
    for name, value in re.findall(r"^(tokenlens_\w+?)(?:\{.*\})? (\S+)$", text, re.MULTILINE):
        found[name] = found.get(name, 0) + float(value)
    return found


def settled(server):
    """Our metrics once nobody is served any more: a server notices in its own time who left."""
    for _ in range(300):
        found = metrics(server)
        if found["tokenlens_slots_in_use"] == 0:
            break
        time.sleep(0.2)
    return found


def post(server, path, body):
    """A request as it is on the wire."""
    import httpx

    return httpx.post(server + path, json=body, timeout=600)


def test_chat_thinks_in_mixtures_and_says_so(client):
    plain = chat(client, None)
    soft = chat(client, SOFT)
    assert plain.model_dump().get("kv_transfer_params") is None
    trace = trace_of(soft)
    assert trace["engine"] == "vllm"
    assert trace["counts"]["tokens"] == soft.usage.completion_tokens
    assert trace["counts"]["latent_steps"] > 0
    assert trace["steps"] == []


def test_a_spec_may_be_a_preset_fields_or_json(client):
    from tokenlens.spec import preset
    from tokenlens.vllm import extra_args

    ways = [
        {"tokenlens": "tiny-soft"},
        SOFT,
        extra_args(preset("tiny-soft")),
        {**SOFT, "tokenlens_soft_thinking.top_k": 30},
    ]
    answers = [chat(client, way) for way in ways]
    assert len({answer.choices[0].message.content for answer in answers}) == 1
    assert len({json.dumps(trace_of(answer)["counts"]) for answer in answers}) == 1


def test_completions_and_full_traces(client):
    response = client.completions.create(
        model="tiny",
        prompt=OPENED,
        max_tokens=30,
        temperature=0,
        extra_body={"vllm_xargs": {**SOFT, "tokenlens_trace.level": "full"}},
    )
    trace = trace_of(response)
    # The operator's bound is 20 steps; the rest is counted.
    assert len(trace["steps"]) == min(20, trace["counts"]["tokens"])
    assert trace["dropped_steps"] == trace["counts"]["tokens"] - len(trace["steps"])
    # The prompt has opened the thinking.
    assert trace["steps"][0]["phase"] == "thinking"
    assert trace["steps"][0]["latent"]


@pytest.mark.parametrize(
    ("xargs", "words"),
    [
        ({"tokenlens": "tiny-sofd"}, ["preset", "tiny-sofd"]),
        ({**SOFT, "tokenlens_soft_thinking.top_k": -3}, ["top_k", "-3", "at least 0"]),
        ({**SOFT, "tokenlens_soft_thinking.max_entries": 33}, ["max_entries", "at most 32"]),
        ({**SOFT, "tokenlens_phase.think_end": "<never>"}, ["phase.think_end"]),
        ({"tokenlens": "tiny-answer-now"}, ["methods[0].method", "on this server"]),
        ({"tokenlens_nothing.x": 1}, ["tokenlens_nothing.x"]),
        ({"tokenlens_east.file": "west"}, ["east.file", "west", "allows by name (east)"]),
        ({"tokenlens_east.file": "/etc/passwd"}, ["file", "/etc/passwd", "never a path"]),
        ({**EAST, "tokenlens_east.layer": 2}, ["east.layer", "2", "1, the layer that the file"]),
    ],
)
def test_a_bad_spec_is_a_400_that_names_the_field(client, server, xargs, words):
    import openai

    before = metrics(server).get("tokenlens_refusals_total", 0)
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, xargs)
    assert caught.value.status_code == 400
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert metrics(server)["tokenlens_refusals_total"] == before + 1
    assert chat(client, SOFT, max_tokens=3).usage.completion_tokens == 3


def test_a_file_of_the_operator_s_steers_as_in_hugging_face(client, server):
    import conformance_models as models
    import transformers
    from conformance_table import Scenario

    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32").eval()
    methods = ({"method": "east", "file": "east"},)
    row = Scenario("east", tuple(tokenizer.encode(OPENED)), methods, tokens=40)
    expected = models.reference_ids(model, tokenizer, row, {})
    before = settled(server).get("tokenlens_shifted_total", 0)
    asked = {"model": "tiny", "prompt": OPENED, "max_tokens": 40, "temperature": 0}
    found, plain = (
        client.completions.create(extra_body={"return_token_ids": True, **more}, **asked)
        for more in ({"vllm_xargs": EAST}, {})
    )
    assert found.choices[0].token_ids == expected != plain.choices[0].token_ids
    shifted = trace_of(found)["counts"]["shifted_steps"]
    assert 0 < shifted <= len(expected)
    assert settled(server)["tokenlens_shifted_total"] == before + shifted


def test_structured_output_and_beams_are_refused(client):
    import openai

    with pytest.raises(openai.BadRequestError, match="response_format: got"):
        chat(client, SOFT, response_format={"type": "json_object"})
    with pytest.raises(openai.BadRequestError, match="beam"):
        client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            max_tokens=4,
            extra_body={"vllm_xargs": SOFT, "use_beam_search": True, "n": 2},
        )


CHAT = {"model": "tiny", "messages": MESSAGES, "max_tokens": 4, "temperature": 0}
TEXT = {"model": "tiny", "prompt": OPENED, "max_tokens": 4, "temperature": 0}
TALK = {"model": "tiny", "input": "make 24 using 3,5,7,2", "max_output_tokens": 4}
TOKENS = {"token_ids": [5, 6, 7], "sampling_params": {"max_tokens": 4, "temperature": 0}}
CARRIED = {"vllm_xargs": SOFT}
SCHEMA = {"type": "object"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
STRICT = {"type": "function", "function": {**TOOL["function"], "strict": True}}
NAMED = {"type": "function", "function": {"name": "f"}}
JSON = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


@pytest.mark.parametrize(
    ("door", "field", "fields"),
    [
        ("chat/completions", "tool_choice", {"tools": [TOOL], "tool_choice": "required"}),
        ("chat/completions", "tool_choice", {"tools": [TOOL], "tool_choice": NAMED}),
        ("chat/completions", "tools[1].function.strict", {"tools": [TOOL, STRICT]}),
        ("chat/completions", "response_format", {"response_format": JSON}),
        ("chat/completions", "structured_outputs", {"structured_outputs": {"regex": "a+"}}),
        ("completions", "response_format", {"response_format": {"type": "json_object"}}),
        ("completions", "structured_outputs", {"structured_outputs": {"choice": ["a", "b"]}}),
        ("responses", "text.format", {"text": {"format": {**JSON["json_schema"], **JSON}}}),
        (
            "messages",
            "tool_choice",
            {"tools": [{"name": "f", "input_schema": SCHEMA}], "tool_choice": {"type": "any"}},
        ),
        (
            "messages",
            "output_config.format",
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        ),
    ],
)
def test_a_grammar_is_refused_by_the_name_that_the_client_wrote(server, door, field, fields):
    base = {"completions": TEXT, "responses": TALK}.get(door, CHAT)
    refused = post(server, f"/v1/{door}", {**base, **fields, **CARRIED})
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["message"].startswith(f"{field}: got "), refused.text


def test_tools_that_are_no_grammar_are_fine(server):
    for fields in ({"tools": [TOOL]}, {"response_format": {"type": "text"}}):
        answer = post(server, "/v1/chat/completions", {**CHAT, **fields, **CARRIED})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("door", "body", "place"),
    [
        ("/v1/chat/completions", {**CHAT, **SOFT}, "tokenlens_preset"),
        ("/v1/chat/completions", {**CHAT, "extra_body": CARRIED}, "extra_body.vllm_xargs"),
        ("/v1/chat/completions", {**CHAT, "extra_args": SOFT}, "extra_args.tokenlens_preset"),
        ("/v1/chat/completions", {**CHAT, "sampling_params": CARRIED}, "sampling_params"),
        ("/v1/chat/completions", {**CHAT, "custom_params": SOFT}, "custom_params"),
        ("/v1/chat/completions", {**CHAT, "chat_template_kwargs": SOFT}, "chat_template_kwargs"),
        ("/v1/chat/completions", {**CHAT, "metadata": SOFT}, "metadata.tokenlens_preset"),
        ("/v1/chat/completions/batch", {**CHAT, "messages": [MESSAGES], **CARRIED}, "no spec"),
        ("/v1/completions", {**TEXT, "tokenlens": "tiny-soft"}, "tokenlens"),
        ("/v1/completions", {**TEXT, "vllm_xargs": {"Tokenlens": "tiny-soft"}}, "Tokenlens"),
        ("/v1/completions", {**TEXT, "vllm_xargs": {"tokenlens.seed": 3}}, "tokenlens.seed"),
        ("/v1/completions", {**TEXT, "vllm_xargs": {"_tokenlens_x": 3}}, "_tokenlens_x"),
        ("/v1/messages", {**CHAT, "metadata": SOFT}, "metadata.tokenlens_preset"),
        ("/v1/responses", {**TALK, **SOFT}, "tokenlens_preset"),
        ("/inference/v1/generate", {**TOKENS, **CARRIED}, "vllm_xargs"),
        ("/cohere/v2/chat", {**CHAT, **CARRIED}, "this endpoint carries no spec"),
        ("/tokenize", {**TEXT, **CARRIED}, "this endpoint carries no spec"),
    ],
)
def test_a_spec_at_a_wrong_place_is_refused(server, door, body, place):
    answer = post(server, door, body)
    assert answer.status_code == 400, answer.text
    assert place in answer.text


def test_talking_about_tokenlens_is_no_spec(server):
    schema = {"type": "object", "properties": {"tokenlens": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    said = [{"role": "user", "content": '"tokenlens": "tiny-soft"'}]
    answer = post(server, "/v1/chat/completions", {**CHAT, "messages": said, "tools": [tool]})
    assert answer.status_code == 200, answer.text
    assert not answer.json().get("kv_transfer_params")


def carried_trace(node):
    """The trace in what one endpoint answered, or in one event of a stream."""
    node = node.get("response") or node
    return (node.get("kv_transfer_params") or {}).get("tokenlens")


@pytest.mark.parametrize(
    ("door", "body"),
    [
        ("/v1/chat/completions", {**CHAT, **CARRIED}),
        ("/v1/completions", {**TEXT, **CARRIED}),
        ("/v1/messages", {**CHAT, **CARRIED}),
        ("/v1/responses", {**TALK, **CARRIED}),
        (
            "/inference/v1/generate",
            {**TOKENS, "sampling_params": {**TOKENS["sampling_params"], "extra_args": SOFT}},
        ),
    ],
)
def test_every_endpoint_hands_the_trace_back_whole_and_streamed(server, door, body):
    whole = post(server, door, body)
    assert whole.status_code == 200, whole.text
    trace = carried_trace(whole.json())
    assert trace["engine"] == "vllm"
    assert trace["counts"]["tokens"] == 4
    streamed = post(server, door, {**body, "stream": True})
    assert streamed.status_code == 200, streamed.text
    events = [json.loads(d) for d in re.findall(r"^data: (\{.*\})$", streamed.text, re.MULTILINE)]
    found = [trace for trace in map(carried_trace, events) if trace]
    assert [one["counts"] for one in found] == [trace["counts"]]
    # Without a spec a stream is vLLM's own.
    plain = {key: value for key, value in body.items() if key != "vllm_xargs"}
    if "vllm_xargs" in body:
        assert "tokenlens" not in post(server, door, {**plain, "stream": True}).text


@pytest.mark.parametrize(
    ("door", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", TEXT),
        ("/v1/messages", CHAT),
        ("/v1/responses", TALK),
        ("/inference/v1/generate", TOKENS),
    ],
)
def test_a_bad_spec_of_a_stream_is_a_400_too(server, door, body):
    wrong = {**SOFT, "tokenlens_soft_thinking.top_k": -3}
    asked = {**body, "stream": True, "vllm_xargs": wrong}
    if body is TOKENS:
        asked = {**body, "stream": True}
        asked["sampling_params"] = {**TOKENS["sampling_params"], "extra_args": wrong}
    before = metrics(server).get("tokenlens_refusals_total", 0)
    answer = post(server, door, asked)
    assert answer.status_code == 400, answer.text
    assert "top_k" in answer.text
    assert "-3" in answer.text
    assert metrics(server)["tokenlens_refusals_total"] == before + 1


def test_a_completion_of_several_prompts_has_all_traces(server):
    body = {**TEXT, "prompt": [OPENED, OPENED, OPENED], **CARRIED}
    answer = post(server, "/v1/completions", body).json()
    traces = carried_trace(answer)
    assert [trace["counts"]["tokens"] for trace in traces] == [4, 4, 4]


def test_the_example_s_client(server):
    done = subprocess.run(
        ["python", str(ROOT / "examples" / "vllm_client.py"), server + "/v1", "tiny-soft"],
        env=surroundings(),
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    text, *counts, refused = done.stdout.rstrip().rsplit("\n", 3)
    assert text.startswith("<think>")
    assert len(text) > 100
    for found in counts:
        assert json.loads(found.replace("'", '"'))["latent_steps"] > 0
    assert refused.startswith("refused:")
    assert "methods[0].top_k: got -1" in refused


def test_streaming_gives_the_same_text_and_trace(client):
    whole = chat(client, SOFT)
    chunks = list(chat(client, SOFT, stream=True, stream_options={"include_usage": True}))
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(parts) == whole.choices[0].message.content
    assert len(parts) > 5
    # In the chunk that ends the text, and nowhere else.
    ended = [chunk for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    carriers = [chunk for chunk in chunks if chunk.model_dump().get("kv_transfer_params")]
    assert len(ended) == 1
    assert carriers == ended
    assert trace_of(ended[0]) == trace_of(whole)
    plain = [chunk.model_dump() for chunk in chat(client, None, stream=True)]
    assert not any(chunk.get("kv_transfer_params") for chunk in plain)


def test_each_choice_of_a_stream_has_its_trace(client):
    settings = {"model": "tiny", "max_tokens": 12, "temperature": 1.0, "n": 2}
    xargs = {"tokenlens": "tiny-gumbel", "tokenlens_seed": 5, "tokenlens_trace.level": "full"}
    stream = client.completions.create(
        prompt=[OPENED, OPENED], stream=True, extra_body={"vllm_xargs": xargs}, **settings
    )
    found, texts = {}, {}
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.finish_reason:
                found[choice.index] = trace_of(chunk)
    assert sorted(found) == [0, 1, 2, 3]
    # Two samples of each prompt; the same sample of the same prompt is the same.
    assert texts[0] == texts[2] != texts[1] == texts[3]
    assert found[0]["steps"] == found[2]["steps"] != found[1]["steps"] == found[3]["steps"]


def test_stop_strings_penalties_logprobs_and_samples(client):
    whole = chat(client, SOFT).choices[0].message.content
    stop = whole[6:9]
    stopped = chat(client, SOFT, stop=[stop])
    assert stopped.choices[0].finish_reason == "stop"
    assert trace_of(stopped)["counts"]["latent_steps"] > 0
    assert len(chat(client, SOFT, logprobs=True, top_logprobs=2).choices[0].logprobs.content) > 0
    chat(client, SOFT, frequency_penalty=0.5, presence_penalty=0.2, seed=3)
    many = chat(client, {"tokenlens": "tiny-gumbel"}, n=3, temperature=1.0)
    traces = trace_of(many)
    assert len(traces) == len(many.choices) == 3
    assert len({choice.message.content for choice in many.choices}) > 1


def test_32_at_once_with_an_abort_and_nothing_is_left(client, server):
    noisy = {"tokenlens": "tiny-gumbel", "tokenlens_seed": 0}
    specs = [SOFT, noisy, {"tokenlens": "tiny-no-thinking"}, None]
    alone = [chat(client, xargs).choices[0].message.content for xargs in specs]

    def ask(index):
        if index % 8 == 7:
            # Leaves in the middle of thinking.
            stream = chat(client, SOFT, stream=True, max_tokens=300)
            next(iter(stream))
            stream.close()
            return None
        return chat(client, specs[index % 4]).choices[0].message.content

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(32)))
    assert [a for a in answers if a is not None] == [
        alone[index % 4] for index in range(32) if index % 8 != 7
    ]
    found = settled(server)
    assert found["tokenlens_slots_in_use"] == 0
    assert found["tokenlens_history_pages_in_use"] == 0
    assert found["tokenlens_latent_total"] > 100
    assert found["tokenlens_switches_total"] > 10
    assert (
        found["tokenlens_tokens_total"]
        == found["tokenlens_latent_total"] + found["tokenlens_discrete_total"]
    )
    assert found["tokenlens_forced_total"] > 0


def test_a_method_from_outside_is_served(client, server):
    import conformance_models as models
    import transformers
    from conformance_table import Scenario

    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32").eval()
    methods = [{"method": "pulse_gate", "latent": 4, "discrete": 2}]
    scenario = Scenario("pulse", tuple(tokenizer.encode(OPENED)), tuple(methods), tokens=40)
    expected = models.reference_ids(model, tokenizer, scenario, {})
    before = metrics(server).get("tokenlens_counted_total", 0)
    spec = json.dumps({"methods": methods, "seed": 0})
    ways = ({"tokenlens": spec}, {"tokenlens_pulse_gate.latent": 4, "tokenlens_seed": 0})
    for xargs in ways:
        answer = client.completions.create(
            model="tiny", prompt=OPENED, max_tokens=40, temperature=0,
            extra_body={"vllm_xargs": xargs},
        )  # fmt: skip
        assert answer.choices[0].text == tokenizer.decode(expected, skip_special_tokens=True)
        counts = trace_of(answer)["counts"]
        assert 0 < counts["latent_steps"] < counts["thinking_tokens"] <= len(expected)
    # What it counts is a metric.
    counted = trace_of(chat(client, {"tokenlens_faulty.fault": ""}))["counts"]["others"]
    assert counted == {"faulty_steps": 40}
    assert metrics(server)["tokenlens_counted_total"] == before + 40


def test_a_method_that_is_not_let_in_is_a_400_that_says_how_to(client):
    import openai

    for xargs in ({"tokenlens_no_echo.penalty": 1.0}, {"tokenlens": '{"methods": ["no_echo"]}'}):
        with pytest.raises(openai.BadRequestError, match=r"no_echo of my-method 0\.1\.0") as caught:
            chat(client, xargs)
        assert "additional_config={'tokenlens': {'methods': ['no_echo']}}" in str(caught.value)


@pytest.mark.parametrize("stream", [False, True])
def test_what_goes_wrong_in_a_method_from_outside_is_told_to_its_client(client, stream):
    import openai

    plain = chat(client, None).choices[0].message.content
    with ThreadPoolExecutor(2) as pool:
        beside = pool.submit(chat, client, None)
        with pytest.raises(openai.APIError, match="the method faulty of this request") as caught:
            list(chat(client, {"tokenlens_faulty.fault": "commit raises"}, stream=stream))
        assert "RuntimeError in its hook commit" in str(caught.value)
        assert "/a/path" not in str(caught.value)
        assert beside.result().choices[0].message.content == plain
    with pytest.raises(openai.APIStatusError, match="faulty") as caught:
        chat(client, {"tokenlens_faulty.fault": "admit"})
    assert "from its hook admit" in str(caught.value)
    assert chat(client, SOFT, max_tokens=3).usage.completion_tokens == 3


def test_a_router_hands_specs_on(server, client):
    """To the server that carries them out, in every call."""
    from router_calls import routed

    found, carries, (soft, plain) = routed(server, OPENED, [SOFT, {}], 30)
    assert (found.api, found.specs_in, carries) == ("vllm", "vllm_xargs", True)
    for chunks, xargs in ((soft, SOFT), (plain, None)):
        extra = {"vllm_xargs": xargs} if xargs else None
        direct = client.completions.create(
            model="tiny", prompt=OPENED, max_tokens=30, temperature=0, extra_body=extra
        )
        ids = [i for chunk in chunks for i in chunk.ids]
        assert found.vocabulary.decode(ids).startswith(direct.choices[0].text)
    assert [c.ids for c in soft] != [c.ids for c in plain]
    assert soft[0].signals is not None


def test_controllers_decide_what_they_do_in_process(server):
    steered.check_decided(lambda: steered.served(server, "tiny", "vllm"))


def test_64_requests_at_once_decide_what_one_does(server):
    steered.check_crowd(steered.served(server, "tiny", "vllm"))
    assert live(server) == 0
    assert steered.total(server, "vllm:kv_cache_usage_perc") == 0
    assert settled(server)["tokenlens_slots_in_use"] == 0


def live(server):
    """Requests that the scheduler has; its gauges are as of its last step: one more is made."""
    body = {"model": "tiny", "prompt": [1], "max_tokens": 1}
    assert steered.post(server, "/v1/completions", body).status_code == 200
    return steered.total(server, "vllm:num_requests_running", "vllm:num_requests_waiting{")


@pytest.mark.parametrize("how", steered.WAYS_OUT)
def test_no_child_outlives_its_request(server, how):
    backend = steered.served(server, "tiny", "vllm")
    steered.check_no_child_outlives(backend, how, lambda: live(server))
    assert settled(server)["tokenlens_slots_in_use"] == 0


def test_children_that_nobody_aborts_are_orphans(server):
    backend = steered.served(server, "tiny", "vllm")
    steered.check_orphans(backend, lambda: live(server))


def test_a_tripwire_ends_a_request_before_the_step(server):
    def ask(fields, **sampling):
        body = {"model": "tiny", "prompt": OPENED, "max_tokens": 40, "temperature": 0,
                "return_token_ids": True, "vllm_xargs": fields, **sampling}  # fmt: skip
        return steered.post(server, "/v1/completions", body)

    steered.check_tripwire(
        lambda fields: ask(fields).json(),
        lambda answer: (answer["choices"][0]["token_ids"], trace_in(answer)),
    )
    for sampling in ({"ignore_eos": True}, {"min_tokens": 3}):
        answer = ask({"tokenlens_tripwire.entropy": 0.1}, **sampling)
        assert answer.status_code == 400
        assert next(iter(sampling)) in answer.text


def trace_in(answer):
    """The trace in a response as it is on the wire."""
    return answer["kv_transfer_params"]["tokenlens"]
