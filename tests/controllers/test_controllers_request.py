"""A request and its children: order, ends, failures, bounds, on the tiny reasoner."""

import asyncio
import random

import pytest
from controllers_support import END, Shuffled, steer
from routing_support import Scripted, alone, model, prompts, vocabulary

from tokenlens.controllers import CONTROLLERS, Controller, parse_controller
from tokenlens.controllers.tree import lines
from tokenlens.errors import BackendError, SpecError
from tokenlens.routing import Sampling
from tokenlens.routing.hf import HFBackend

WARM = Sampling(temperature=1.0, seed=5)
PROBE = {"probe_text": "\n</think>\n\n"}
"""A probe that the tiny vocabulary can write."""
SPECS = {
    "self_consistency": {"n": 3},
    "best_of_n": {"n": 3},
    "deer": {"words": ["wait"], **PROBE, "probe_stops": ["zzz"], "threshold": 0.99},
    "dynasor": {"chunk": 24, "window": 2, **PROBE, "answers": "text"},
    "conditional_entropy": {**PROBE, "probe_stops": ["zzz"]},
    "first_try": {"pattern": "=", "hard": 3},
    "concise_hint": {"hint": "9-5=4", "first": 24},
    "latr": {"n": 3, "force": 48, "checks": [8, 16], "absolute": 0.1, "relative": 0.6},
    "cntp": {"most": 3, "high": 1.0},
    "cure": {"again": 2},
    "fetch": {"budget": 2, "beam": 2, "limit": 3, "step": "\n\n"},
    "confidence_pool": {"n": 3, "warm": 2, "period": 24},
    "icn": {"n": 2, "text": "{found}\n\n"},
    "ellipsis": {"text": "wait\n\n"},
}
"""Of one model."""


def spec_of(name, **fields):
    return {"policy": {"policy": name, **SPECS[name], **fields}}


def decided(found):
    """What a request decided: everything but how far a stream ran ahead of its end."""
    nodes = [
        # Batches of other sizes round otherwise.
        (n.kind, n.parent, n.at, n.kept, n.end, None if n.value is None else round(n.value, 3))
        for n in found.trace.nodes
    ]
    trace = found.trace
    vote = {answer: round(weight, 3) for answer, weight in trace.vote.items()}
    return found.ids, found.answer, trace.stopped, vote, trace.forks, trace.probes, nodes


@pytest.mark.parametrize("name", SPECS)
def test_the_order_in_which_children_end_decides_nothing(name):
    backends = []

    def wrap(seed):
        def one(backend):
            backends.append(Shuffled(backend, seed))
            return backends[-1]

        return one

    found = [
        steer(spec_of(name), prompts(4)[:2], sampling=WARM, max_tokens=120, wrap=wrap(seed))
        for seed in range(2)
    ]
    assert [decided(one) for one in found[0]] == [decided(one) for one in found[1]]
    for backend in backends:
        assert backend.running == 0
        assert backend.sessions == set()
    for one in found[0]:
        usage = one.trace.usage["large"]
        assert usage.tokens + usage.discarded_tokens == sum(n.tokens for n in one.trace.nodes)
        assert sum(n.kept for n in one.trace.nodes) == usage.tokens
        assert usage.discarded_tokens >= 0
        assert one.trace.canonical is not None
        assert len(lines(one.trace)) == len(one.trace.nodes)


def test_every_method_of_one_model_is_tried():
    two = {"trimr", "reverse_speculative"}
    assert set(SPECS) | two == set(CONTROLLERS)


def slots(backend):
    """Slots that the worker has given away; it is told nothing more."""
    worker = backend._worker
    return len(worker._slots)


@pytest.mark.parametrize("name", ["latr", "cntp", "self_consistency", "dynasor", "fetch"])
def test_a_client_that_leaves_takes_its_children_along(name):
    async def go():
        backend = HFBackend(model("small"), vocabulary(), max_sessions=8)
        watched = Shuffled(backend, 1)
        controller = Controller(watched, spec_of(name), vocabulary=vocabulary())
        rng = random.Random(7)
        for _ in range(3):
            task = asyncio.ensure_future(
                controller.run(prompts(4)[0], sampling=WARM, max_tokens=200)
            )
            goal = watched.calls + rng.randrange(1, 6)
            while watched.calls < goal and not task.done():
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            assert watched.running == 0
            assert watched.sessions == set()
        # A request behind them: the worker has read all that they left in its inbox.
        last = await controller.run(prompts(4)[0], max_tokens=8)
        await controller.close()
        return backend, last

    backend, last = asyncio.run(go())
    assert last.ids
    assert slots(backend) == 0


def fails(when):
    """A backend whose calls fail where ``when(ask)`` says so."""

    def check(count, ask):
        if when(count, ask):
            raise BackendError("large", "unreachable", "killed")

    return lambda backend: Shuffled(backend, 0, [check])


@pytest.mark.parametrize("name", ["deer", "dynasor", "conditional_entropy"])
def test_a_probe_that_fails_ends_no_request(name):
    think_end = tuple(vocabulary().encode(PROBE["probe_text"]))

    def is_probe(count, ask):
        return ask.context[-len(think_end) :] == think_end and ask.max_tokens <= 20

    (found,) = steer(spec_of(name), prompts(4)[2:3], wrap=fails(is_probe))
    assert found.ids == alone("small", prompts(4)[2])
    failed = [node for node in found.trace.nodes if node.kind == "probe"]
    assert failed
    assert all("killed" in node.error for node in failed)


@pytest.mark.parametrize("name", ["self_consistency", "latr", "cntp", "cure", "confidence_pool"])
def test_a_child_that_is_killed_leaves_its_siblings(name):
    killed = []

    def is_last(count, ask):
        if ask.session.count(".") and not killed and count > 1:
            killed.append(ask.session)
            return True
        return False

    (found,) = steer(spec_of(name), prompts(4)[2:3], sampling=WARM, wrap=fails(is_last),
                     max_tokens=150)  # fmt: skip
    assert killed
    assert found.ids
    assert any(node.error and "killed" in node.error for node in found.trace.nodes)


@pytest.mark.parametrize("name", sorted(set(SPECS) - {"ellipsis"}))
def test_a_backend_that_is_killed_is_an_error(name):
    backends = []

    def wrap(backend):
        backends.append(fails(lambda count, ask: count > 1)(backend))
        return backends[-1]

    def run():
        return steer(spec_of(name), prompts(4)[:1], wrap=wrap, sampling=WARM, max_tokens=150)

    with pytest.raises(BackendError, match="unreachable"):
        run()
    assert backends[0].running == 0
    assert backends[0].sessions == set()


def test_an_end_inside_the_thinking_is_no_answer():
    words = vocabulary()

    def script(before):
        if "</think>" in before:
            return f"3*4=12{END}"
        return f"<think>\n9-5=4{END}"

    controller = Controller(Scripted(script), {"policy": {"policy": "self_consistency", "n": 1}},
                            vocabulary=words)  # fmt: skip
    found = asyncio.run(controller.run((1,)))
    assert found.text == "<think>\n9-5=4\n</think>\n\n3*4=12"
    assert (found.answer, found.trace.stopped) == ("3*4=12", "vote")
    endless = Controller(Scripted(lambda before: "9-5=4,"), {
        "policy": {"policy": "self_consistency", "n": 2}, "thinking_tokens": 8},
        vocabulary=words)  # fmt: skip
    cut = asyncio.run(endless.run((1,), max_tokens=8))
    assert (cut.answer, cut.finish_reason, cut.trace.stopped) == (None, "length", "no answer")


def test_bounds_hold_while_a_request_runs():
    spec = {**spec_of("cntp"), "limits": {"forks": 6, "probes": 0, "injected_tokens": 0}}
    (found,) = steer(spec, prompts(4)[:1])
    assert found.trace.forks <= 6
    spec = {**spec_of("dynasor"), "limits": {"probes": 2}}
    (found,) = steer(spec, prompts(4)[:1])
    assert found.trace.probes <= 2
    spec = {**spec_of("concise_hint"), "limits": {"injected_tokens": 0}}
    (found,) = steer(spec, prompts(4)[2:3])
    assert found.ids == alone("small", prompts(4)[2])


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"policy": "deer", "threshold": 1.5}, ["threshold", "1.5"]),
        ({"policy": "deer", "threshold": float("nan")}, ["threshold"]),
        ({"policy": "latr", "n": 0}, ["n", "0"]),
        ({"policy": "latr", "n": 1}, ["n", "1"]),
        ({"policy": "latr", "checks": [30, 20]}, ["checks"]),
        ({"policy": "latr", "absolute": 0.6}, ["absolute"]),
        ({"policy": "self_consistency", "n": 0}, ["n"]),
        ({"policy": "self_consistency", "n": 1000}, ["1000 forks", "512", "limits.forks"]),
        ({"policy": "cntp", "low": 2.0}, ["high"]),
        ({"policy": "cntp", "most": 0}, ["most"]),
        ({"policy": "cntp", "marks": []}, ["marks"]),
        ({"policy": "dynasor", "effort": "wild"}, ["effort"]),
        ({"policy": "nothing"}, ["policy"]),
        ({"policy": "fetch", "budget": 0}, ["budget"]),
    ],
)
def test_errors_name_the_setting(policy, words):
    with pytest.raises(SpecError) as caught:
        Controller(Scripted(lambda before: ""), {"policy": policy}, vocabulary=vocabulary())
    for word in words:
        assert word in str(caught.value)


def controller(name, vocab=None, **kwargs):
    policy = {"policy": name, **SPECS.get(name, {}), **kwargs.pop("fields", {})}
    return Controller(Scripted(lambda before: ""), {"policy": policy}, vocabulary=vocab, **kwargs)


def test_what_cannot_be_carried_out_is_refused_with_the_reason():
    words = vocabulary()
    with pytest.raises(SpecError, match=r"policy\.probe_text"):
        controller("dynasor", words, fields={"probe_text": "Überraschung"})
    with pytest.raises(SpecError, match=r"policy\.hint"):
        controller("concise_hint", words, fields={"hint": "be brief"})
    for name in ("deer", "latr", "cntp", "cure", "best_of_n", "conditional_entropy",
                 "confidence_pool"):  # fmt: skip
        with pytest.raises(SpecError, match="takes and gives text"):
            controller(name, None)
    for name in ("trimr", "reverse_speculative"):
        with pytest.raises(SpecError, match="a second one"):
            controller(name, words)
    with pytest.raises(SpecError, match="is_answer"):
        controller("first_try", words, fields={"detector": "caller"})
    with pytest.raises(SpecError, match="a server of text gives no prob"):
        asyncio.run(controller("fetch").run("x"))


@pytest.mark.parametrize(
    "score", [None, "high", [], [1.0, "x"], float("nan"), float("inf"), True, {"a": 1}]
)
def test_a_verifier_that_answers_nonsense(score):
    spec = {"policy": {**SPECS["fetch"], "policy": "fetch", "value": "caller"}}

    async def go():
        backend = HFBackend(model("small"), vocabulary())
        steered = Controller(backend, spec, vocabulary=vocabulary(),
                             scorers={"value": lambda text: score})  # fmt: skip
        try:
            await steered.run(prompts(4)[0], max_tokens=100)
        finally:
            await steered.close()

    with pytest.raises(SpecError, match=r"policy\.fetch\.scorers\.value"):
        asyncio.run(go())


def test_a_second_model_that_says_neither_yes_nor_no():
    async def go():
        backends = [HFBackend(model(role), vocabulary()) for role in ("large", "small")]
        spec = {"policy": {"policy": "trimr", "holds_text": "9-5=4", "same_text": "9-5=4"}}
        steered = Controller(backends[0], spec, vocabulary=vocabulary(), second=backends[1],
                             second_vocabulary=vocabulary())  # fmt: skip
        try:
            return await steered.run(prompts(4)[2], max_tokens=320)
        finally:
            await steered.close()

    found = asyncio.run(go())
    assert found.ids == alone("large", prompts(4)[2])
    verdicts = [node for node in found.trace.nodes if node.kind == "verdict"]
    assert {node.note for node in verdicts} == {"neither yes nor no"}
    assert found.trace.usage["small"].discarded_tokens == len(verdicts)


def test_a_hint_longer_than_the_budget_is_left_out():
    (found,) = steer(spec_of("concise_hint", first=16, hint="9-5=4," * 40), prompts(4)[2:3],
                     max_tokens=60)  # fmt: skip
    assert found.trace.injected_tokens == 0
    assert found.ids == alone("small", prompts(4)[2])[:60]


def test_hints_are_read_and_not_returned():
    spec = spec_of("concise_hint", first=16, hint="9-5=4")

    class Commas(Scripted):
        pass

    backend = Commas(lambda before: "3*4=12, " if len(before) < 200 else f"</think>\n\n7{END}")
    backend.script = lambda before: (
        "3*4=12,\n\n" * 8 if len(before) < 150 else f"</think>\n\n7{END}"
    )
    steered = Controller(backend, spec, vocabulary=vocabulary())
    found = asyncio.run(steered.run((1,)))
    read = vocabulary().decode(backend.asked[-1].context[1:])
    assert "9-5=4" not in found.text
    if found.trace.injected_tokens:
        assert "9-5=4" in read


def test_published_profiles_are_other_defaults():
    for name in ("deer", "dynasor", "cntp", "concise_hint", "fetch", "trimr"):
        config = CONTROLLERS[name][0]
        published = parse_controller({"policy": {"policy": name, "profile": "published"}}).policy
        assert published != parse_controller(name).policy
        for field, value in config.published.items():
            assert getattr(published, field) == value
