"""The server, started for real with the flag, and driven with ``openai`` and ``httpx``."""

import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import steered
from ports import free_port
from servers import Process
from sglang_support import environment, needs_sglang

pytestmark = [needs_sglang, pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "tokenlens" / "assets" / "tiny-reasoner-small"
MESSAGES = [{"role": "user", "content": "make 24 using 3,5,7,2"}]
OPENED = "<|im_start|>user\nmake 24 using 3,5,7,2<|im_end|>\n<|im_start|>assistant\n<think>\n"
"""A prompt whose template has opened the thinking."""
SOFT = {"tokenlens": "tiny-soft"}


def steered_by(file, **more):
    """A spec that adds a vector of the operator's behind a layer."""
    return {"methods": [{"method": "east", "file": file, **more}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The base address of a running server; its operator has set bounds."""
    import conformance_models as models

    port, file = free_port(), models.vector_files("east")["east"]
    log = tmp_path_factory.mktemp("server") / "log"
    # The example's own command: with the flag, and 32 entries at most.
    command = [
        *("sh", str(ROOT / "examples" / "sglang_serve.sh"), str(MODEL)),
        *("--served-model-name", "tiny", "--port", str(port)),
        *("--tokenlens-max-trace-steps", "20"),
        # no_echo is installed too, and not allowed.
        *("--tokenlens-methods", "pulse_gate", "faulty"),
        *("--tokenlens-files", f"east={file}"),
        *("--device", "cpu", "--dtype", "float32", "--attention-backend", "torch_native"),
        *("--mem-fraction-static", "0.2", "--max-total-tokens", "16384"),
        *("--max-running-requests", "32", "--disable-cuda-graph", "--skip-server-warmup"),
        *("--chunked-prefill-size", "64", "--sampling-defaults", "openai", "--enable-metrics"),
        *("--context-length", "512"),
    ]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    process = Process(command, port, log, "/v1/models", environment(PATH=path))
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


def chat(client, params, **kwargs):
    """One chat completion; greedy unless told otherwise."""
    settings = {"temperature": 0, "max_tokens": 40, "messages": MESSAGES, **kwargs}
    extra = {"custom_params": params} if params else None
    return client.chat.completions.create(model="tiny", extra_body=extra, **settings)


def post(server, path, body):
    """A request as it is on the wire."""
    import httpx

    return httpx.post(server + path, json=body, timeout=600)


def generate(server, params, text=OPENED, stream=False, **sampling):
    """One request of SGLang's own interface."""
    sampling = {"temperature": 0, "max_new_tokens": 40, **sampling}
    if params:
        sampling["custom_params"] = params
    body = {"text": text, "sampling_params": sampling, "stream": stream}
    return post(server, "/generate", body)


def trace_of(response, choice=0):
    """The trace in an OpenAI-compatible response."""
    return response.model_dump()["choices"][choice]["meta_info"]["tokenlens"]


def metrics(server):
    """Our metrics by name, summed over their labels."""
    import httpx

    text = httpx.get(server + "/metrics/", timeout=600, follow_redirects=True).text
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


def test_chat_thinks_in_mixtures_and_says_so(client):
    plain = chat(client, None)
    soft = chat(client, SOFT)
    assert "tokenlens" not in json.dumps(plain.model_dump())
    trace = trace_of(soft)
    assert trace["engine"] == "sglang"
    assert trace["counts"]["tokens"] == soft.usage.completion_tokens
    assert trace["counts"]["latent_steps"] > 0
    assert trace["steps"] == []


def test_all_doors_give_hugging_faces_tokens(client, server):
    import conformance_models as models
    import transformers
    from conformance_table import Scenario

    from tokenlens.spec import preset

    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32").eval()
    prompt = tokenizer.encode(OPENED)
    specs = {
        name: preset(name).model_dump(mode="json")
        for name in ("tiny-soft", "tiny-gumbel", "tiny-no-thinking")
    }
    for name, spec in {**specs, "east": steered_by("east")}.items():
        scenario = Scenario(name, tuple(prompt), tuple(spec["methods"]), tokens=40)
        expected = models.reference_ids(model, tokenizer, scenario, {})
        found = generate(server, {"tokenlens": {**spec, "seed": 0}}).json()
        assert found["output_ids"] == expected
        assert found["meta_info"]["tokenlens"]["counts"]["tokens"] == len(expected)
        completion = client.completions.create(
            model="tiny",
            prompt=OPENED,
            max_tokens=40,
            temperature=0,
            extra_body={"custom_params": {"tokenlens": {**spec, "seed": 0}}},
        )
        assert completion.choices[0].text == found["text"]
        counts = found["meta_info"]["tokenlens"]["counts"]
        assert trace_of(completion)["counts"] == counts
        assert bool(counts["shifted_steps"]) == (name == "east")


def test_a_method_from_outside_is_served(server):
    import conformance_models as models
    import transformers
    from conformance_table import Scenario

    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32").eval()
    methods = [{"method": "pulse_gate", "latent": 4, "discrete": 2}]
    scenario = Scenario("pulse", tuple(tokenizer.encode(OPENED)), tuple(methods), tokens=40)
    expected = models.reference_ids(model, tokenizer, scenario, {})
    found = generate(server, {"tokenlens": {"methods": methods, "seed": 0}}).json()
    assert found["output_ids"] == expected
    counts = found["meta_info"]["tokenlens"]["counts"]
    assert 0 < counts["latent_steps"] < counts["thinking_tokens"] <= len(expected)
    # What it counts is a metric.
    before = metrics(server).get("tokenlens_counted_total", 0)
    found = generate(server, {"tokenlens": {"methods": [{"method": "faulty"}]}}).json()
    counted = found["meta_info"]["tokenlens"]["counts"]["others"]
    assert counted == {"faulty_steps": len(found["output_ids"])}
    assert metrics(server)["tokenlens_counted_total"] == before + counted["faulty_steps"]


def test_a_method_that_is_not_let_in_is_a_400_that_says_how_to(server):
    for params in ({"tokenlens_no_echo.penalty": 1.0}, {"tokenlens": {"methods": ["no_echo"]}}):
        answer = generate(server, params)
        assert answer.status_code == 400
        assert "no_echo of my-method 0.1.0" in answer.text
        assert "--tokenlens-methods no_echo" in answer.text


def test_what_goes_wrong_in_a_method_from_outside_is_told_to_its_client(server):
    plain = generate(server, None).json()["output_ids"]
    faults = ("commit raises", "edit in half", "admit")
    with ThreadPoolExecutor(2) as pool:
        beside = pool.submit(generate, server, None)
        for fault in faults:
            answer = generate(server, {"tokenlens_faulty.fault": fault})
            assert answer.status_code >= 400, answer.text
            assert f"its hook {fault.split()[0]}" in answer.text
            assert "faulty" in answer.text
        assert beside.result().json()["output_ids"] == plain
    assert generate(server, SOFT).status_code == 200


def test_full_traces_are_bounded_by_the_operator(server):
    spec = {"preset": "tiny-soft", "trace": {"level": "full"}}
    trace = generate(server, {"tokenlens": spec}).json()["meta_info"]["tokenlens"]
    assert len(trace["steps"]) == min(20, trace["counts"]["tokens"])
    assert trace["dropped_steps"] == trace["counts"]["tokens"] - len(trace["steps"])
    assert trace["steps"][0]["phase"] == "thinking"
    assert trace["steps"][0]["latent"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("tiny-sofd", ["preset", "tiny-sofd"]),
        ({"methods": [{"method": "soft_thinking", "top_k": -3}]}, ["methods[0].top_k", "-3"]),
        ({"methods": [{"method": "soft_thinking", "max_entries": 33}]}, ["at most 32"]),
        ({"preset": "tiny-soft", "phase": {"think_end": "<never>"}}, ["phase.think_end"]),
        ({"nothing": 1}, ["nothing"]),
        (steered_by("west"), ["east.file", "west", "allows by name (east)"]),
        (steered_by("/etc/passwd"), ["methods[0].file", "/etc/passwd", "never a path"]),
        (steered_by("east", layer=2), ["east.layer", "1, the layer that the file"]),
    ],
)
@pytest.mark.parametrize("door", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_a_bad_spec_is_a_400_that_names_the_field(server, door, spec, words):
    before = metrics(server).get("tokenlens_refusals_total", 0)
    params = {"custom_params": {"tokenlens": spec}}
    body = {
        "/generate": {"text": OPENED, "sampling_params": {"max_new_tokens": 4, **params}},
        "/v1/completions": {"model": "tiny", "prompt": OPENED, "max_tokens": 4, **params},
        "/v1/chat/completions": {
            "model": "tiny",
            "messages": MESSAGES,
            "max_tokens": 4,
            **params,
        },
    }[door]
    response = post(server, door, body)
    assert response.status_code == 400, response.text
    assert all(word in response.text for word in words), response.text
    assert metrics(server)["tokenlens_refusals_total"] == before + 1


def test_structured_output_and_beams_are_refused(client, server):
    import openai

    with pytest.raises(openai.BadRequestError, match="response_format: got"):
        chat(client, SOFT, response_format={"type": "json_object"})
    refused = generate(server, SOFT, beam_width=2)
    assert refused.status_code == 400
    assert "beam_width" in refused.text


def test_streaming_gives_the_same_text(client, server):
    whole = chat(client, SOFT).choices[0].message.content
    counts = trace_of(chat(client, SOFT))["counts"]
    chunks = [chunk for chunk in chat(client, SOFT, stream=True) if chunk.choices]
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(parts) == whole
    assert len(parts) > 5
    # The chunk that ends a choice has its trace.
    ended = [chunk for chunk in chunks if "meta_info" in chunk.model_dump()["choices"][0]]
    assert len(ended) == 1
    assert ended[0].choices[0].finish_reason
    assert trace_of(ended[0])["counts"] == counts
    lines = generate(server, SOFT, stream=True).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert chunks[-1]["meta_info"]["tokenlens"]["counts"]["latent_steps"] > 0
    assert all("tokenlens" not in chunk["meta_info"] for chunk in chunks[:-1])


def test_streamed_samples_have_their_own_traces(client):
    def stream(params):
        return client.completions.create(
            model="tiny",
            prompt=OPENED,
            max_tokens=30,
            n=3,
            temperature=1.0,
            stream=True,
            extra_body={"custom_params": params} if params else None,
        )

    noisy = {"tokenlens": "tiny-gumbel"}
    choices = [one for chunk in stream(noisy) for one in chunk.model_dump()["choices"]]
    texts = {
        index: "".join(one["text"] for one in choices if one["index"] == index)
        for index in range(3)
    }
    assert len(set(texts.values())) > 1
    traces = {one["index"]: one["meta_info"]["tokenlens"] for one in choices if "meta_info" in one}
    assert sorted(traces) == [0, 1, 2]
    assert all(0 < trace["counts"]["tokens"] <= 30 for trace in traces.values())
    assert all("meta_info" not in one for c in stream(None) for one in c.model_dump()["choices"])


def test_the_client_example(server):
    script = ROOT / "examples" / "sglang_client.py"
    done = subprocess.run(
        [sys.executable, str(script), server + "/v1", "tiny-soft"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    streamed, counts, refused = done.stdout.strip().rsplit("\n", 2)
    assert streamed
    assert "'latent_steps': " in counts
    assert refused.startswith("refused: ")
    assert "methods[0].top_k" in refused


def test_stop_strings_penalties_logprobs_and_samples(client):
    whole = chat(client, SOFT).choices[0].message.content
    stop = whole[6:9]
    stopped = chat(client, SOFT, stop=[stop])
    assert stopped.choices[0].finish_reason == "stop"
    assert trace_of(stopped)["counts"]["latent_steps"] > 0
    assert len(chat(client, SOFT, logprobs=True, top_logprobs=2).choices[0].logprobs.content) > 0
    chat(client, SOFT, frequency_penalty=0.5, presence_penalty=0.2, seed=3)
    many = chat(client, {"tokenlens": "tiny-gumbel"}, n=3, temperature=1.0)
    traces = [trace_of(many, index) for index in range(3)]
    assert all(trace["counts"]["tokens"] for trace in traces)
    assert len({choice.message.content for choice in many.choices}) > 1


def test_32_at_once_with_aborts_and_nothing_is_left(client, server):
    noisy = {"tokenlens": "tiny-gumbel", "tokenlens_seed": 0}
    specs = [SOFT, noisy, {"tokenlens": "tiny-no-thinking"}, None]
    alone = [chat(client, params).choices[0].message.content for params in specs]

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


def test_a_router_reads_it_as_a_server_of_text(server, client):
    """The end of a text is no end of a step, though SGLang says which token it met there."""
    from router_calls import routed

    # One that the model ends by itself.
    prompt = "<|im_start|>user\nmake 12 using 12,4,12,2<|im_end|>\n<|im_start|>assistant\n"
    found, carries, (soft, plain) = routed(server, prompt, [SOFT, {}], 320, str(MODEL))
    assert (found.api, found.specs_in, carries) == ("text", "custom_params", True)
    assert (found.max_length, found.lead) == (512, "")
    ends = []
    for chunks, params in ((soft, SOFT), (plain, None)):
        extra = {"custom_params": params} if params else None
        direct = client.completions.create(
            model="tiny", prompt=prompt, max_tokens=320, temperature=0, extra_body=extra
        )
        assert "".join(chunk.text for chunk in chunks) == direct.choices[0].text
        ends.append((chunks[-1].finish, direct.choices[0].finish_reason))
    assert set(ends) <= {("eos", "stop"), ("length", "length")}
    assert ends[1] == ("eos", "stop")
    assert [c.text for c in soft] != [c.text for c in plain]
    assert len(plain[0].signals.top) == 5


def test_an_evaluation_of_the_server_has_the_records_of_hugging_face(server, tmp_path):
    from tokenlens.evaluation import ArmSampling, arms_of, evaluate, load_task, open_engine
    from tokenlens.spec import preset

    found = {}
    for name, settings in (("hf", {}), ("server", {"base_url": [server], "concurrency": 4})):
        engine = open_engine(name, MODEL.name, **settings)
        try:
            results = evaluate(
                engine,
                load_task("countdown", limit=3),
                arms_of({"gumbel": preset("tiny-gumbel")}, ArmSampling(temperature=0.0, top_p=1.0)),
                tmp_path / name,
                batch_size=3,
                max_new_tokens=40,
            )
        finally:
            engine.close()
        found[name] = {
            arm.name: [one.model_dump() for one in results.records(arm.name)]
            for arm in results.arms
            if not arm.name.startswith("sampling")
        }
    assert len(found["hf"]) == 5
    assert found["server"] == found["hf"]
    assert sum(one["latent_steps"] for one in found["server"]["gumbel"]) > 20
    settings = json.loads((tmp_path / "server" / "settings.json").read_text())
    assert any("sglang" in name for name in settings["versions"])


def test_controllers_decide_what_they_do_in_process(server):
    steered.check_decided(lambda: steered.served(server, "tiny", "sglang"))


def test_an_idle_server_tells_its_scale(server):
    """SGLang's values of a batch in which all are greedy are raw: it is not asked for such one."""
    import asyncio

    from tokenlens.routing.backend import Ask
    from tokenlens.routing.settings import Sampling

    async def top(backend, how):
        found = [c async for c in backend.generate(Ask("x", (0, 1), 1, how, facts=3)) if c.facts]
        return dict(found[0].facts[0].top)

    async def go():
        backend = steered.served(server, "tiny", "sglang")
        try:
            scale = await backend.log_prob_scale()
            greedy = [await top(backend, Sampling(temperature=t, top_k=1)) for t in (1.0, 2.0)]
            return scale, greedy
        finally:
            await backend.close()

    scale, greedy = asyncio.run(go())
    assert scale == "tempered"
    # What asking for one token alone would have told.
    assert greedy[0] == pytest.approx(greedy[1], abs=1e-5)


def test_64_requests_at_once_decide_what_one_does(server):
    steered.check_crowd(steered.served(server, "tiny", "sglang"))
    assert live(server) == 0
    assert settled(server)["tokenlens_slots_in_use"] == 0


def live(server):
    """Requests that the scheduler has; it counts them when another one comes."""
    assert generate(server, None, max_new_tokens=1).status_code == 200
    return steered.total(server, "sglang:num_running_reqs", "sglang:num_queue_reqs")


@pytest.mark.parametrize("how", steered.WAYS_OUT)
def test_no_child_outlives_its_request(server, how):
    backend = steered.served(server, "tiny", "sglang")
    steered.check_no_child_outlives(backend, how, lambda: live(server))
    assert settled(server)["tokenlens_slots_in_use"] == 0


def test_children_that_nobody_aborts_are_orphans(server):
    backend = steered.served(server, "tiny", "sglang")
    steered.check_orphans(backend, lambda: live(server))


def test_a_tripwire_ends_a_request_before_the_step(server):
    steered.check_tripwire(
        lambda fields, **sampling: generate(server, fields, **sampling).json(),
        lambda answer: (answer["output_ids"], answer["meta_info"]["tokenlens"]),
    )
    for sampling in ({"ignore_eos": True}, {"min_new_tokens": 3}):
        answer = generate(server, {"tokenlens_tripwire.entropy": 0.1}, **sampling)
        assert answer.status_code == 400
        assert next(iter(sampling)) in answer.text
