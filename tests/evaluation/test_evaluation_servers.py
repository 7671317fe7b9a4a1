"""Evaluations over servers with every fault that a server has; real ones are in the vLLM tests."""

import asyncio
import json
import threading

import pytest
from evaluation_fakes import FakeServer

from tokenlens.errors import ServersError
from tokenlens.evaluation import Arm, arms_of, evaluate, load_task, open_engine
from tokenlens.evaluation.servers import checked_urls, key_of
from tokenlens.spec import DecodingSpec, preset

SMALL = "tiny-reasoner-small"
QUICK = {
    "backoff": 0.01, "cooldown": 0.1, "outage": 3.0, "failures": 2, "attempts": 4, "health": 0.3,
}  # fmt: skip
PLAIN = [Arm(name="plain", spec=DecodingSpec())]


@pytest.fixture
def servers():
    """Makes fakes, and ends them."""
    made = []

    def make(*arguments, **settings):
        made.append(FakeServer(*arguments, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def connect(*servers, **settings):
    return open_engine(
        "server", SMALL, base_url=[one.url for one in servers], patience=QUICK,
        **{"concurrency": 4, **settings},
    )  # fmt: skip


def run(folder, engine, arms=PLAIN, limit=24, **settings):
    try:
        return evaluate(
            engine, load_task("countdown", limit=limit), arms, folder,
            **{"batch_size": 10, "max_new_tokens": 20} | settings,
        )  # fmt: skip
    finally:
        engine.close()


def texts(results):
    return [(one.question, one.text) for one in results.records("plain")]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What one server without faults gives."""
    server = FakeServer()
    try:
        return texts(run(tmp_path_factory.mktemp("expected"), connect(server)))
    finally:
        server.close()


@pytest.mark.parametrize(
    "mode", ["drop", "hang", 500, 502, 503, "aborted", "no json", "no ids", "too many"]
)
def test_what_one_server_fails_at_the_others_answer(tmp_path, servers, expected, mode):
    bad, good = servers(mode), servers()
    engine = connect(bad, good)
    assert texts(run(tmp_path, engine)) == expected
    assert bad.asked
    assert sorted(good.answered) == sorted(set(good.answered))
    assert len(good.answered) == len(expected)
    assert engine.states()[0]["answered"] == 0


def test_a_server_that_comes_back_is_asked_again(tmp_path, servers, expected):
    first = servers(503)
    threading.Timer(0.2, lambda: setattr(first, "mode", "fine")).start()
    assert texts(run(tmp_path, connect(first))) == expected


def test_a_busy_server_is_waited_for_and_not_left_out(tmp_path, servers, expected):
    busy = servers(429)
    timer = threading.Timer(1.0, lambda: setattr(busy, "mode", "fine"))
    timer.start()
    engine = connect(busy)
    assert texts(run(tmp_path, engine)) == expected
    assert "left_out" not in engine.states()[0]


def test_a_run_whose_servers_are_all_gone_goes_on_later(tmp_path, servers, expected):
    first = servers()
    engine = connect(first)
    answered = []

    def progress(arm, done, total):
        answered.append(done)
        if len(answered) == 13:
            first.mode = "drop"

    with pytest.raises(ServersError, match="the same command goes on"):
        run(tmp_path, engine, progress=progress)
    before = len(first.answered)
    assert 12 <= before < 24
    assert json.loads((tmp_path / "progress.json").read_text())["state"] == "failed"
    second = servers()
    # Neither addresses nor how many requests go at a time change the numbers.
    assert texts(run(tmp_path, connect(second, concurrency=2))) == expected
    assert sorted(first.answered + second.answered) == sorted(set(first.answered + second.answered))
    assert len(second.answered) == 24 - before


def test_an_answer_that_was_cut_while_written_is_asked_for_again(tmp_path, servers, expected):
    first = servers()
    with pytest.raises(ServersError):
        run(
            tmp_path,
            connect(first, concurrency=1),
            progress=lambda arm, done, total: done == 13 and setattr(first, "mode", "drop"),
        )
    (path,) = (tmp_path / "records").glob("*.partial")
    path.write_bytes(path.read_bytes()[:-20])
    second = servers()
    assert texts(run(tmp_path, connect(second))) == expected
    assert len(second.answered) == 24 - 13 + 1


def test_one_request_that_always_fails_is_named_and_the_others_are_kept(tmp_path, servers):
    server = servers()
    server.fail_first = 4
    with pytest.raises(ServersError, match=r"1 of 10 requests failed 4 times"):
        run(tmp_path, connect(server, concurrency=1))
    assert len(server.answered) == 9
    assert len(run(tmp_path, connect(server)).records("plain")) == 24
    assert len(set(server.answered)) == len(server.answered) == 24


def test_a_refusal_ends_the_run_before_a_question_is_asked(tmp_path, servers):
    good, strict = servers(), servers(400)
    with pytest.raises(ServersError, match=r"spec 'plain'.*status 400.*methods\[0\].top_k"):
        run(tmp_path, connect(good, strict))
    lacking = servers("no trace")
    with pytest.raises(ServersError, match=r"tokenlens is not switched on.*--logits-processors"):
        run(tmp_path / "b", connect(lacking))
    assert not good.asked + strict.asked + lacking.asked


def test_servers_must_serve_one_model_on_one_engine(servers):
    with pytest.raises(ValueError, match="serve others"):
        connect(servers(), servers(name="huge"))
    with pytest.raises(ValueError, match="all of vllm or all of sglang"):
        connect(servers(), servers(owned_by="sglang"))
    with pytest.raises(ValueError, match="'mystery'"):
        connect(servers(owned_by="mystery"))
    with pytest.raises(ValueError, match="a tokenizer that is not the one of"):
        connect(servers(tokens=[1, 2, 3]))
    with pytest.raises(ServersError, match="no server can be reached"):
        open_engine("server", SMALL, base_url="http://127.0.0.1:9", patience=QUICK)


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(tmp_path, servers, monkeypatch):
    server = servers(key="s3cret")
    with pytest.raises(ServersError, match="TOKENLENS_API_KEY"):
        connect(server)
    monkeypatch.setenv("MY_KEY", "s3cret")
    run(tmp_path, connect(server, api_key_env="MY_KEY"), limit=4)
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "s3cret" not in written
    with pytest.raises(ValueError, match="'NO_KEY', which is not set"):
        key_of("NO_KEY")
    monkeypatch.setenv("TOKENLENS_API_KEY", "a b")
    with pytest.raises(ValueError, match="a key with spaces"):
        key_of(None)


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ([], "got none"),
        (["localhost:8000"], "allowed: http"),
        (["ftp://x"], "allowed: http"),
        (["http://"], "allowed: http"),
        (["http://x:port"], "allowed"),
        (["http://u:p@x"], "TOKENLENS_API_KEY"),
        (["http://x/v1", "http://x/"], "twice"),
    ],
)
def test_wrong_addresses_are_named(urls, message):
    with pytest.raises(ValueError, match=message) as caught:
        checked_urls(urls)
    assert "u:p" not in str(caught.value)


def test_it_works_where_an_event_loop_runs(tmp_path, servers, expected):
    async def notebook():
        return run(tmp_path, connect(servers()))

    assert texts(asyncio.run(notebook())) == expected


def test_controls_and_progress_are_as_in_this_process(tmp_path, servers):
    arms = arms_of({"soft": preset("tiny-soft")})
    results = run(tmp_path, connect(servers(), servers()), arms, limit=6, samples=2)
    assert len(results.arms) == 6
    assert all(len(results.records(arm.name)) == 12 for arm in results.arms)
    found = json.loads((tmp_path / "progress.json").read_text())
    assert (found["state"], found["done"], found["total"]) == ("done", 72, 72)
    assert found["tokens"] == 144
    assert sum(one["answered"] for one in found["servers"]) == 72


def test_a_run_until_an_interval_stops_at_one_place_whoever_answers(tmp_path, servers):
    bounds = {"limit": 60, "until_ci": 15.0}
    whole = run(tmp_path / "whole", connect(servers(), servers()), **bounds)
    assert whole.stopped
    assert len(whole.records("plain")) == 30
    first = servers()

    def progress(arm, done, total):
        if done == 23:
            first.mode = "drop"

    with pytest.raises(ServersError):
        run(tmp_path / "cut", connect(first), progress=progress, **bounds)
    second = servers()
    again = run(tmp_path / "cut", connect(second, concurrency=3), **bounds)
    assert again.stopped == whole.stopped
    assert again.records("plain") == whole.records("plain")
    assert len(first.answered) + len(second.answered) == 30
