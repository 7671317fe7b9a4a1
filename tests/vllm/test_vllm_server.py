"""The OpenAI-compatible server, started for real and driven with the ``openai`` client.

It is the server of ``examples/vllm_serve.sh``, and the example's client asks it too.
"""

import json
import os
import re
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
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


def surroundings():
    """The environment of processes that find ``python`` by its name."""
    folder = str(Path(sys.executable).parent)
    return {**environment(), "PATH": folder + os.pathsep + os.environ["PATH"]}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The base address of a running server; its owner has set bounds."""
    port = free_port()
    log = tmp_path_factory.mktemp("server") / "log"
    command = [
        *("sh", str(ROOT / "examples" / "vllm_serve.sh"), str(MODEL)),
        *("--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)),
        *("--enforce-eager", "--dtype", "float32", "--max-model-len", "512"),
        *("--kv-cache-memory-bytes", str(32 << 20), "--max-num-seqs", "32"),
        *("--generation-config", "vllm"),
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
    """Our metrics by name."""
    with urllib.request.urlopen(server + "/metrics", timeout=600) as response:
        text = response.read().decode()
    return {
        name: float(value)
        for name, value in re.findall(r"^(tokenlens_\w+?)(?:\{.*\})? (\S+)$", text, re.MULTILINE)
    }


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
    # The owner's bound is 20 steps; the rest is counted.
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


def test_structured_output_and_beams_are_refused(client):
    import openai

    with pytest.raises(openai.BadRequestError, match="structured_outputs"):
        chat(client, SOFT, response_format={"type": "json_object"})
    with pytest.raises(openai.BadRequestError, match="beam"):
        client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            max_tokens=4,
            extra_body={"vllm_xargs": SOFT, "use_beam_search": True, "n": 2},
        )


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
    assert not any(
        "kv_transfer_params" in chunk.model_dump() for chunk in chat(client, None, stream=True)
    )


def test_each_choice_of_a_stream_has_its_trace(client):
    settings = {"model": "tiny", "max_tokens": 12, "temperature": 1.0, "n": 2}
    xargs = {"tokenlens": "tiny-gumbel", "tokenlens_trace.level": "full"}
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
    specs = [SOFT, {"tokenlens": "tiny-gumbel"}, {"tokenlens": "tiny-no-thinking"}, None]
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
    # The worker hears of an end with the next step, and reports with a step of its own.
    for _ in range(3):
        chat(client, SOFT, max_tokens=2)
    found = metrics(server)
    assert found["tokenlens_slots_in_use"] == 1
    assert found["tokenlens_history_pages_in_use"] == 1
    assert found["tokenlens_latent_total"] > 100
    assert found["tokenlens_switches_total"] > 10
    assert (
        found["tokenlens_tokens_total"]
        == found["tokenlens_latent_total"] + found["tokenlens_discrete_total"]
    )
    assert found["tokenlens_forced_total"] > 0


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
