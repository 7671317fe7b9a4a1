"""Controllers over a real server: held to the same ones in process, and what they leave behind."""

import asyncio
import re
import sys
from pathlib import Path

import httpx
import pytest

sys.path.append(str(Path(__file__).parents[1] / "routing"))

from routing_support import model, prompts, vocabulary

from tokenlens.controllers import Controller
from tokenlens.controllers import branching as branching_module
from tokenlens.controllers.methods.latr import Rollout
from tokenlens.routing import Sampling
from tokenlens.routing.hf import HFBackend
from tokenlens.routing.http import HTTPBackend

PROBE = {"probe_text": "\n</think>\n\n"}
STEERED = {
    "best_of_n": {"n": 2},
    "cntp": {"most": 3, "low": 0.2, "high": 1.0, "cap": 8},
    "concise_hint": {"hint": "9-5=4", "first": 32},
    "conditional_entropy": {"step": "\n\n", "probe_text": PROBE["probe_text"], "epsilon": 0.1},
    "confidence_pool": {"n": 3, "warm": 2, "period": 24},
    "cure": {"again": 2, "top": 3},
    "deer": {"words": ["wait"], **PROBE, "probe_stops": ["zzz"], "threshold": 0.8},
    "dynasor": {"chunk": 24, "window": 2, **PROBE, "answers": "text"},
    # SGLang's log-probabilities are behind the temperature.
    "fetch": {"budget": 2, "beam": 2, "limit": 3, "step": "\n\n", "temperature": 1.0},
    "ellipsis": {"text": "wait\n\n"},
    "first_try": {"pattern": "=", "hard": 3},
    "icn": {"n": 2, "text": "{found}\n\n"},
    "latr": {"n": 3, "force": 48, "checks": [8, 16], "absolute": 0.1, "relative": 0.6},
    "reverse_speculative": {},
    "self_consistency": {"n": 2},
    "trimr": {"holds_text": "9-5=4", "same_text": "9-5=4"},
}
"""Methods that decide the same on every engine where nothing is drawn."""
TWO = ("reverse_speculative", "trimr")
"""Methods of two models; both are the same one here."""
ONE_TOKEN = Sampling(temperature=0.0, top_k=1)
"""Greedy; what a method samples all the same has one token to draw from."""
OPENED = "<|im_start|>user\nmake 24 using 3,5,7,2<|im_end|>\n<|im_start|>assistant\n<think>\n"
ASKED = 2
"""Prompts of each method, all at once."""


def spec_of(name, **fields):
    """A controller's spec by its method's name."""
    return {"policy": {"policy": name, **STEERED.get(name, {}), **fields}}


def served(address, name, api):
    """The server as a backend."""
    return HTTPBackend("large", address, name, api=api, max_length=512)


def in_process():
    """The same model in this process."""
    return HFBackend(model("small"), vocabulary(), max_sessions=32)


TOKENS = {"reverse_speculative": 32}
"""Of two requests a token each."""


def decided(connect, names=tuple(STEERED), tokens=120):
    """What every method decides of a few prompts, all of them at once.

    Parameters
    ----------
    connect
        Makes a backend of the same model; methods of two models get two.
    """

    async def one(backends, name, ids):
        first, second = backends
        kwargs = {"second": second, "second_vocabulary": vocabulary()} if name in TWO else {}
        controller = Controller(first, spec_of(name), vocabulary=vocabulary(), **kwargs)
        most = TOKENS.get(name, tokens)
        found = await controller.run(ids, sampling=ONE_TOKEN, max_tokens=most)
        trace = found.trace
        nodes = [(n.kind, n.parent, n.at, n.kept, n.end) for n in trace.nodes]
        # A trial's measures: entropies of whole distributions, perplexities.
        values = [n.value for n in trace.nodes if n.value is not None]
        return (found.ids, trace.stopped, trace.forks, trace.probes, nodes), values

    async def go():
        backends = [connect(), connect()]
        try:
            calls = [one(backends, name, ids) for name in names for ids in prompts(4)[-ASKED:]]
            found = await asyncio.gather(*calls)
        finally:
            for backend in backends:
                await backend.close()
        return dict(zip([(name, at) for name in names for at in range(ASKED)], found))

    return asyncio.run(go())


CROWD = 64
"""Requests of each of two methods, all at once."""


def check_crowd(backend):
    """Many requests at once decide what one alone does, and leave no session behind."""
    names = ("latr", "cntp")

    async def go(backend, copies):
        async def one(name, ids):
            controller = Controller(backend, spec_of(name), vocabulary=vocabulary())
            found = await controller.run(ids, sampling=ONE_TOKEN, max_tokens=32)
            return found.ids, found.trace.forks

        try:
            asked = [(name, ids) for name in names for ids in prompts(4)[-ASKED:]]
            found = await asyncio.gather(*(one(*pair) for pair in asked * copies))
        finally:
            await backend.close()
        return [found[at :: len(asked)] for at in range(len(asked))]

    alone = asyncio.run(go(in_process(), 1))
    assert sum(forks for ((_, forks),) in alone) > 0
    for together, (own,) in zip(asyncio.run(go(backend, CROWD // ASKED)), alone):
        assert len(together) == CROWD // ASKED
        assert all(one == own for one in together)


def check_decided(connect):
    """Every method decides over a server what it decides in process, its measures included."""
    backends = []

    def over_the_wire():
        backends.append(connect())
        return backends[-1]

    over, own = decided(over_the_wire), decided(in_process)
    # Asked once, by the first method that has a use for it.
    assert backends[0].trips
    for name, (what, values) in own.items():
        assert over[name][0] == what, name
        if name[0] == "conditional_entropy":
            # A server's largest entries allow no less than this.
            assert all(least < nats + 1e-3 for least, nats in zip(over[name][1], values)), name
        else:
            assert over[name][1] == pytest.approx(values, abs=1e-3), name
    assert any(what[2] for (name, _), (what, _) in own.items() if name == "cntp")


TRIPWIRES = (
    {"entropy": 0.9, "skip": 5},
    {"margin": 0.2, "second": 0.3, "skip": 2},
    {"max_probability": 0.4, "temperature": 1.5},
    {"entropy": 0.4, "temperature": 0.6, "top_p": 0.9, "skip": 12},
    {"token": 7, "rank": 30, "skip": 3},
    {"entropy": 50},
)


def check_tripwire(ask, read):
    """A server trips where ``generate()`` does, at the same value, and writes the same before it.

    Parameters
    ----------
    ask
        Given flat fields of a spec, a greedy answer of at most 40 tokens.
    read
        Ids and trace of it.
    """
    from tokenlens.hf import generate_kwargs, traces

    words, network = vocabulary().tokenizer, model("small")
    inputs = words(OPENED, return_tensors="pt")
    seen = set()
    for fields in TRIPWIRES:
        spec = {"methods": [{"method": "tripwire", **fields}]}
        kwargs = generate_kwargs(network, words, spec)
        output = network.generate(**inputs, do_sample=False, max_new_tokens=40, **kwargs)
        (own,) = traces(kwargs)
        wanted = own.tripped and own.tripped.model_dump()
        ids, trace = read(ask({f"tokenlens_tripwire.{name}": v for name, v in fields.items()}))
        assert ids == output[0, inputs["input_ids"].shape[1] :].tolist(), fields
        assert (trace["tripped"] is None) == (wanted is None)
        if wanted is not None:
            assert trace["tripped"] == {**wanted, "value": pytest.approx(wanted["value"], abs=1e-4)}
            seen.add(wanted["condition"])
    assert seen == {"entropy", "margin", "max_probability", "rank"}


def post(address, path, body):
    """A request as it is on the wire."""
    return httpx.post(address + path, json=body, timeout=600, trust_env=False)


def total(address, *names):
    """The sum of a server's metrics whose lines begin so."""
    text = httpx.get(address + "/metrics", timeout=120, trust_env=False, follow_redirects=True).text
    pattern = "|".join(re.escape(name) for name in names)
    return sum(float(v) for v in re.findall(rf"^(?:{pattern})\S* (\S+)$", text, re.MULTILINE))


TREE = {"n": 8, "absolute": 0.0, "relative": 1.0, "edit": None, "force": 400}
"""LATR that branches at every token until it is full, and prunes nothing."""


class StoppedError(Exception):
    """Raised in the middle of a request."""


WAYS_OUT = {"cancelled": asyncio.CancelledError, "timeout": TimeoutError, "raised": StoppedError}


def check_no_child_outlives(backend, how, live):
    """A request's children are broken off with it, whatever the way out."""
    left, broken_off = leave(backend, how, live)
    assert left == 0
    assert broken_off > 0


def check_orphans(backend, live):
    """Children that nobody aborts write on."""
    left, broken_off = leave(backend, "cancelled", live, aborts=False)
    assert left > 0
    assert broken_off == 0


async def nobody(tasks):
    """In the place of what ends the children."""


def leave(backend, how, live, *, aborts=True):
    """Begin trees, leave them in the middle, and wait until the server has none of their rows.

    Parameters
    ----------
    how
        The way out: one of ``WAYS_OUT``.
    live
        Says how many requests the server has: looks between two of its steps.
    aborts
        False: children are left alone, and come to their own ends.

    Returns
    -------
    tuple of int
        Children that still wrote when their request was over, and those that were broken off.
    """

    async def until(is_so):
        while not is_so(await asyncio.to_thread(live)):
            await asyncio.sleep(0.02)

    async def go():
        controller = Controller(backend, spec_of("latr", **TREE), vocabulary=vocabulary())
        middle = asyncio.Event()
        branch = Rollout._branch

        def branching(*args):
            if how == "raised" and middle.is_set():
                raise StoppedError
            branch(*args)

        async def run(ids):
            if how == "timeout":
                async with asyncio.timeout(None) as patience:
                    waits = asyncio.ensure_future(middle.wait())
                    waits.add_done_callback(
                        lambda _: patience.reschedule(asyncio.get_running_loop().time())
                    )
                    await controller.run(ids, max_tokens=400)
            else:
                await controller.run(ids, max_tokens=400)

        rows, start = [], branching_module.Pool._start

        def starting(pool, row, room):
            rows.append(row)
            return start(pool, row, room)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(branching_module.Pool, "_start", starting)
            patch.setattr(Rollout, "_branch", branching)
            tasks = [asyncio.ensure_future(run(ids)) for ids in prompts(4)[:2]]
            # Asking the server how many it has may take longer than a tree lives.
            while sum(row.task is not None and not row.task.done() for row in rows) < 4:
                assert not any(task.done() for task in tasks), "a tree ended before it was left"
                await asyncio.sleep(0.002)
            if not aborts:
                patch.setattr(branching_module, "end", nobody)
            middle.set()
            if how == "cancelled":
                for task in tasks:
                    task.cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(one, WAYS_OUT[how]) for one in found), found
            streams = [row.task for row in rows if row.task is not None]
            left = sum(not one.done() for one in streams)
            if not aborts:
                await asyncio.gather(*streams)
            await until(lambda count: count == 0)
            await backend.close()
        return left, sum(row.ended == "cancelled" for row in rows)

    return asyncio.run(go())
