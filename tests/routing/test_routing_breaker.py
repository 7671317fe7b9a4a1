"""The circuit breaker: when it opens, whom it lets in, and that nobody is lost on the way."""

import asyncio

import pytest
from routing_fakes import Served, fake_server, wait_for
from routing_servers import Proxy
from routing_support import alone, prompts, vocabulary

from tokenlens.routing import BackendError, Router
from tokenlens.routing.breaker import Breaker
from tokenlens.routing.http import HTTPBackend, HTTPSettings


def admitted(breaker):
    """The call that a breaker lets through at once, or ``None``."""
    return asyncio.run(breaker.admit())


def test_it_opens_waits_and_tries_once():
    now = [0.0]
    breaker = Breaker(2, 5.0, lambda: now[0])
    call = admitted(breaker)
    breaker.failed(call)
    breaker.answered(call)
    breaker.failed(call)
    assert breaker.state == "closed"
    breaker.failed(call)
    assert breaker.state == "open"
    assert admitted(breaker) is None
    now[0] = 5.0
    assert breaker.state == "half_open"
    trial = admitted(breaker)
    assert trial is not None
    # one trial at a time
    assert admitted(breaker) is None
    # A call from before that fails only now says nothing of the trial.
    breaker.failed(call)
    assert breaker.state == "half_open"
    breaker.failed(trial)
    assert breaker.state == "open"
    now[0] = 10.0
    trial = admitted(breaker)
    # who tried went away: the next one may
    breaker.cancelled(trial)
    trial = admitted(breaker)
    breaker.answered(trial)
    assert breaker.state == "closed"
    assert admitted(breaker) is not None


def test_a_call_from_before_that_is_answered_closes_it():
    breaker = Breaker(1, 5.0, lambda: 0.0)
    slow, bad = admitted(breaker), admitted(breaker)
    breaker.failed(bad)
    assert breaker.state == "open"
    breaker.answered(slow)
    assert breaker.state == "closed"


def test_one_slow_stream_does_not_open_it():
    now = [0.0]
    breaker = Breaker(1, 5.0, lambda: now[0])
    slow, quick = admitted(breaker), admitted(breaker)
    now[0] = 1.0
    breaker.answered(slow)
    now[0] = 2.0
    breaker.answered(quick)
    now[0] = 60.0
    breaker.failed(slow, timed_out=True)
    assert breaker.state == "closed"
    # anything but patience running out does count
    breaker.failed(slow)
    assert breaker.state == "open"
    # and so does a time-out where nobody was answered since: its own pieces are no excuse
    breaker.answered(slow)
    now[0] = 120.0
    breaker.failed(slow, timed_out=True)
    assert breaker.state == "open"


def test_who_has_nobody_else_waits_the_cooldown_out():
    async def go():
        breaker = Breaker(1, 0.02)
        breaker.failed(await breaker.admit())
        return await breaker.admit(wait=True)

    assert asyncio.run(go()) is not None


@pytest.mark.parametrize("outcome", ["answered", "failed", "cancelled"])
def test_who_has_nobody_else_waits_for_the_trial(outcome):
    async def go():
        now = [0.0]
        breaker = Breaker(1, 5.0, lambda: now[0])
        breaker.failed(await breaker.admit())
        now[0] = 5.0
        trial = await breaker.admit(wait=True)
        waiting = [asyncio.create_task(breaker.admit(wait=True)) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert await breaker.admit() is None
        assert not any(task.done() for task in waiting)
        getattr(breaker, outcome)(trial)
        if outcome == "cancelled":
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert len(done) == 1
            breaker.answered(done.pop().result())
        return await asyncio.gather(*waiting)

    found = asyncio.run(go())
    assert [call is None for call in found] == [outcome == "failed"] * 3


@pytest.fixture(scope="module")
def proxies():
    """Two servers of text, each behind a connection that can be cut or held."""
    served = [Served(fake_server(role)) for role in ("small", "large")]
    found = [Proxy(one.url) for one in served]
    yield found
    for one in (*found, *served):
        one.close()


@pytest.mark.parametrize("waits", [True, False])
def test_both_left_alone_and_back_loses_no_request(proxies, waits, monkeypatch):
    """Both breakers open and both servers back: all wait for the one trial. The guard off: 503."""
    words, ids = vocabulary(), prompts(2)[1]
    admit = Breaker.admit
    if not waits:
        monkeypatch.setattr(Breaker, "admit", lambda self, *, wait: admit(self))
    settings = HTTPSettings(failures=1, retries=0, cooldown=0.5, read_timeout=600)

    async def go():
        backends = [
            HTTPBackend(role, proxy.address, f"tiny-{role}", api="text", settings=settings)
            for role, proxy in zip(("small", "large"), proxies)
        ]
        spec = {"policy": "always_small", "duplicate_guard": False}
        router = Router(*backends, spec)
        text = words.decode(ids)
        for proxy in proxies:
            proxy.mode = "down"
        with pytest.raises(BackendError):
            await router.run(text, max_tokens=100)
        for proxy in proxies:
            proxy.mode = "hold"
        states = {backend.breaker.state for backend in backends}
        assert "closed" not in states
        calls = [asyncio.create_task(router.run(text, max_tokens=100)) for _ in range(6)]
        if waits:
            # Two trials at most are under way, held in the middle; the others wait.
            await asyncio.to_thread(wait_for, lambda: sum(p.held for p in proxies))
            assert [proxy.open_connections <= 1 for proxy in proxies] == [True, True]
        for proxy in proxies:
            proxy.mode = "pass"
        try:
            return await asyncio.gather(*calls, return_exceptions=True)
        finally:
            await router.close()

    found = asyncio.run(go())
    if not waits:
        assert {one.kind for one in found if isinstance(one, BackendError)} == {"open"}
        return
    assert not [one for one in found if isinstance(one, Exception)]
    assert all(one.tokens == 100 or one.finish_reason == "stop" for one in found)
    # Who was written by the small model alone has its text.
    whole = words.decode([i for i in alone("small", ids, 100) if i not in words.eos_ids])
    texts = {one.text for one in found if not one.trace.usage["large"].tokens}
    assert texts <= {whole}
