"""Evaluations on vLLM: ``tokenlens eval``'s engine and lm-eval's model answer as Hugging Face.

The same of two real servers, of which one is killed in the middle.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from guide_commands import command_of
from ports import free_port
from servers import Process
from vllm_support import TIMEOUT, environment, needs_vllm

# The fixture counts in the first test.
pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("vllm_evaluation.py")), str(folder)],
        env={**environment(), "VLLM_CACHE_ROOT": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return json.loads((folder / "found.json").read_text())


def test_every_greedy_arm_s_records_are_those_of_hugging_face(found):
    greedy = [name for name in found["hf"] if not name.startswith("sampling")]
    assert len(greedy) == len(found["hf"]) - 1 == 5
    for name in greedy:
        assert found["vllm"][name] == found["hf"][name]
    assert sum(record["latent_steps"] for record in found["vllm"]["gumbel"]) > 50
    assert any(record["finished"] for arm in found["vllm"].values() for record in arm)


def test_sampling_is_the_engine_s_own(found):
    (name,) = [name for name in found["vllm"] if name.startswith("sampling")]
    assert found["vllm"][name] != found["vllm"]["greedy"]


@pytest.mark.parametrize("spec", ["", "tiny-soft", "tiny-gumbel"])
def test_lm_eval_s_answers_are_those_of_generate(found, spec):
    answers = [answer for _, answer in found["lm_eval"][spec]]
    assert answers == found["generate"][spec]


def test_lm_eval_s_specs_differ(found):
    texts = {json.dumps(found["generate"][spec]) for spec in ("", "tiny-soft", "tiny-gumbel")}
    assert len(texts) == 3


def test_a_task_that_generates_nothing_is_refused(found):
    assert "soft_thinking with a loglikelihood task" in found["lm_eval"]["scoring"]


def start(folder, name):
    """A server of the model that the driver evaluates, by the command of a guide."""
    from tokenlens.assets import path_of

    port = free_port()
    command = [
        *command_of("vllm.entrypoints.openai.api_server", path_of("tiny-reasoner-latent")),
        *("--served-model-name", "tiny"),
        *("--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "float32"),
        *("--max-model-len", "512", "--kv-cache-memory-bytes", str(32 << 20)),
        *("--max-num-seqs", "16", "--api-key", "secret"),
    ]
    return Process(command, port, folder / f"{name}.log", environment=environment())


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two servers; the first is there to be killed."""
    folder = tmp_path_factory.mktemp("servers")
    running = []
    try:
        for name in ("doomed", "other"):
            running.append(start(folder, name))
        yield running
        running[1].check()
    finally:
        for one in running:
            one.stop()


def test_a_server_that_is_killed_loses_no_answer(found, pair, tmp_path, monkeypatch):
    from tokenlens.evaluation import Sampling, arms_of, evaluate, load_task, open_engine
    from tokenlens.spec import preset

    urls = [one.address for one in pair]
    with pytest.raises(OSError, match="TOKENLENS_API_KEY"):
        open_engine("server", "tiny-reasoner-latent", base_url=urls)
    monkeypatch.setenv("TOKENLENS_API_KEY", "secret")
    with pytest.raises(ValueError, match="serve others"):
        open_engine("server", "tiny-reasoner-small", base_url=urls[1:], served_model="wrong")
    engine = open_engine("server", "tiny-reasoner-latent", base_url=urls, concurrency=4)
    told = []

    def progress(arm, done, total):
        told.append((arm, done))
        if len(told) == 2:
            # With requests on their way to it.
            pair[0].stop(signal.SIGKILL)

    try:
        results = evaluate(
            engine,
            load_task("countdown", limit=4),
            arms_of({"gumbel": preset("tiny-gumbel")}, Sampling(temperature=0.0, top_p=1.0)),
            tmp_path,
            batch_size=4,
            max_new_tokens=60,
            progress=progress,
        )
        states = engine.states()
    finally:
        engine.close()
    records = {
        arm.name: [r.model_dump() for r in results.records(arm.name)] for arm in results.arms
    }
    greedy = [name for name in found["hf"] if not name.startswith("sampling")]
    assert {name: records[name] for name in greedy} == {
        name: found["vllm"][name] for name in greedy
    }
    assert sum(one["answered"] for one in states) == sum(map(len, records.values())) == 6 * 4
    assert "left_out" in states[0]
    assert "left_out" not in states[1]
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["versions"]["vllm server"].startswith("0.32")
    assert "secret" not in "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())


def test_a_run_until_an_interval_ends_where_hugging_face_s_does(pair, tmp_path, monkeypatch):
    from tokenlens.evaluation import GREEDY, Arm, evaluate, load_task, open_engine
    from tokenlens.spec import DecodingSpec

    monkeypatch.setenv("TOKENLENS_API_KEY", "secret")
    runs = []
    for name, settings in (("hf", {}), ("server", {"base_url": [pair[1].address]})):
        engine = open_engine(name, "tiny-reasoner-latent", **settings)
        try:
            runs.append(
                evaluate(
                    engine, load_task("countdown", limit=60),
                    [Arm(name="plain", spec=DecodingSpec(), sampling=GREEDY)], tmp_path / name,
                    batch_size=10, max_new_tokens=24, until_ci=15.0,
                )
            )  # fmt: skip
        finally:
            engine.close()
    own, served = runs
    assert served.stopped == own.stopped != ""
    assert served.records("plain") == own.records("plain")
    assert 20 <= len(own.records("plain")) < 60


def test_the_guide_s_command_lets_its_method_in(pair):
    answer = httpx.post(
        f"{pair[1].address}/v1/completions",
        headers={"Authorization": "Bearer secret"},
        json={
            "model": "tiny",
            "prompt": "<think>",
            "max_tokens": 6,
            "vllm_xargs": {"tokenlens_pulse_gate.latent": 2},
        },
        timeout=600,
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["kv_transfer_params"]["tokenlens"]["counts"]["latent_steps"] > 0


@pytest.mark.parametrize("spec", ["", "tiny-soft", "tiny-gumbel"])
def test_lm_eval_over_a_server_equals_lm_eval_in_this_process(found, pair, spec, monkeypatch):
    import lm_eval
    from lm_eval.tasks import TaskManager

    from tokenlens.evaluation.harness.server import TokenlensServer

    monkeypatch.setenv("TOKENLENS_API_KEY", "secret")
    model = TokenlensServer("tiny-reasoner-latent", base_url=pair[1].address, spec=spec)
    tasks = TaskManager(include_path=str(Path(__file__).parents[2] / "examples" / "lm_eval"))
    results = lm_eval.simple_evaluate(
        model=model, tasks=["tokenlens_countdown"], task_manager=tasks, limit=4,
        apply_chat_template=True, gen_kwargs={"max_gen_toks": 60}, bootstrap_iters=0,
    )  # fmt: skip
    samples = results["samples"]["tokenlens_countdown"]
    assert [one["resps"][0][0] for one in samples] == found["generate"][spec]
    assert [one["arguments"][0][0] for one in samples] == [p for p, _ in found["lm_eval"][spec]]


@pytest.mark.parametrize(("spec", "samples"), [("", True), ("tiny-gumbel", False)])
def test_repeats_of_a_prompt_are_independent_samples(pair, spec, samples, monkeypatch):
    from lm_eval.api.instance import Instance

    from tokenlens.evaluation.harness.server import TokenlensServer

    monkeypatch.setenv("TOKENLENS_API_KEY", "secret")
    model = TokenlensServer("tiny-reasoner-latent", base_url=pair[1].address, spec=spec)
    drawn = {"do_sample": samples, "temperature": 1.0 if samples else 0.0}
    question = "<|im_start|>user\nmake 24 using 3,5,7,2<|im_end|>\n<|im_start|>assistant\n"
    arguments = (question, {"until": [], "max_gen_toks": 40, **drawn})
    requests = [Instance("generate_until", {}, arguments, 0, ("t", 0, 4)) for _ in range(4)]
    first, again = (model.generate_until(requests, disable_tqdm=True) for _ in range(2))
    assert len(set(first)) == 4
    assert first == again
