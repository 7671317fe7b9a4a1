"""The step loop on scripted models: budgets, guards, ends, probes, hand-over."""

import asyncio

import pytest
from routing_support import Scripted, vocabulary

from tokenlens.routing import BackendError, Router

END = "<|im_end|>"


def route(spec, small, large, **kwargs):
    """One text out of two scripts."""
    words = vocabulary()
    backends = [s if isinstance(s, Scripted) else Scripted(s) for s in (small, large)]
    router = Router(*backends, spec, small_vocabulary=words, large_vocabulary=words)
    return asyncio.run(router.run((1,), **kwargs))


def after(text, default):
    """A script: the rest of ``text``, or ``default`` where it has been left."""
    return lambda before: text[len(before) :] if text.startswith(before) else default


def kinds(routed):
    """Phase, end and writers of every step."""
    return [(s.phase, s.end, [p.writer for p in s.pieces]) for s in routed.trace.steps]


WHOLE = f"<think>\n3*4=12\n\n12-2=10\n\n</think>\n\n3*4=12{END}"


def test_steps_answer_and_counts():
    routed = route("always_small", after(WHOLE, END), after("", END))
    assert routed.text + END == WHOLE
    assert routed.finish_reason == "stop"
    assert [step.text for step in routed.trace.steps] == [
        "<think>\n3*4=12\n\n", "12-2=10\n\n", "</think>", "\n\n3*4=12",
    ]  # fmt: skip
    assert [step.end for step in routed.trace.steps] == ["boundary", "boundary", "think_end", "eos"]
    usage = routed.trace.usage
    assert (usage["small"].tokens, usage["large"].tokens) == (routed.tokens, 0)
    assert routed.ids == vocabulary().encode(WHOLE)


def test_the_entropy_decides_and_the_probe_is_kept_or_thrown_away():
    def entropy(before):
        return 2.0 if before.endswith("12\n\n") else 0.1

    small = Scripted(after(WHOLE, "9-9=1\n\n"), entropy)
    glimpse = {"policy": "glimprouter", "threshold": 1.0}
    for probe in ("keep", "discard"):
        spec = {"policy": {**glimpse, "probe": probe}}
        routed = route(spec, small, after(WHOLE, END))
        assert routed.text + END == WHOLE
        assert [step.signal for step in routed.trace.steps] == [0.1, 2.0, 0.1, None]
        assert [w for _, _, w in kinds(routed)] == [["small"], ["large"], ["small"], ["large"]]
        thrown = [step.probe_tokens for step in routed.trace.steps]
        assert thrown == ([0, 1, 0, 0] if probe == "keep" else [1, 1, 1, 0])
        assert routed.trace.usage["small"].discarded_tokens == sum(thrown)
    assert routed.trace.large_step_share == pytest.approx(1 / 3)


@pytest.mark.parametrize(("comparison", "writer"), [(">", "small"), (">=", "large")])
def test_at_the_threshold(comparison, writer):
    spec = {"policy": {"policy": "glimprouter", "threshold": 0.5, "comparison": comparison}}
    routed = route(spec, Scripted(after(WHOLE, END), 0.5), after(WHOLE, END))
    assert routed.trace.steps[0].pieces[0].writer == writer


@pytest.mark.parametrize(("profile", "writer"), [("default", "large"), ("published", "small")])
def test_an_entropy_that_is_nan(profile, writer):
    spec = {"policy": {"policy": "glimprouter", "profile": profile}}
    small = Scripted(after(WHOLE, END), float("nan"))
    if profile == "published":
        # its top 20 hold an impossible token
        from tokenlens.routing import Chunk, FirstTokenSignals

        plain = small.generate

        async def generate(ask):
            async for chunk in plain(ask):
                facts = FirstTokenSignals((("a", 0.0), ("b", -9999.0)), 0.0)
                yield Chunk(chunk.ids, "", chunk.tokens, facts, chunk.finish)

        small.generate = generate
    routed = route(spec, small, after(WHOLE, END))
    assert routed.trace.steps[0].pieces[0].writer == writer
    assert routed.trace.steps[0].signal is None


def test_a_probe_that_is_itself_the_end():
    for mark, end in ((END, "eos"), ("</think>", "think_end"), ("\n\n", "boundary")):
        text = f"<think>\n\n{mark}"
        small = Scripted(lambda before, t=text: t[len(before) :] or END)
        routed = route("glimprouter", small, lambda before: f"7{END}")
        second = routed.trace.steps[1]
        assert (second.end, second.pieces[0].tokens) == (end, 1)
        # nothing was asked of the small model behind the end
        probes = [ask for ask in small.asked if vocabulary().decode(ask.context[1:]) == text[:9]]
        assert len(probes) == 1


def test_budgets():
    endless = lambda before: "3*4=12," * 3  # noqa: E731
    closing = "\n</think>\n\n"
    spec = {"policy": "always_small", "step_tokens": 6, "thinking_tokens": 20, "answer_tokens": 9,
            "duplicate_guard": False}  # fmt: skip
    routed = route(spec, endless, endless)
    assert [end for _, end, _ in kinds(routed)] == ["length"] * 4 + ["budget", "length"]
    assert routed.text.count(closing) == 1
    assert routed.finish_reason == "length"
    # a step that was cut goes on without a delimiter
    assert "\n\n" not in routed.text.split(closing)[0]
    steps = routed.trace.steps
    assert [sum(p.tokens for p in step.pieces) for step in steps[:4]] == [6, 6, 6, 2]
    assert sum(p.tokens for p in steps[-1].pieces) == 9
    short = route(spec, endless, endless, max_tokens=13)
    assert (short.tokens, short.finish_reason) == (13, "length")
    steps = route({**spec, "max_steps": 2}, endless, endless).trace.steps
    assert [step.end for step in steps] == ["length", "length", "budget", "length"]
    assert route({**spec, "think_end": None}, endless, endless).finish_reason == "length"


@pytest.mark.parametrize("cycle", [["1+1=2\n\n"], ["1+1=2\n\n", "2+1=3\n\n"]])
def test_duplicate_steps_close_the_thinking(cycle):
    def script(before):
        if "</think>" in before:
            return f"7{END}"
        return cycle[before.count("\n\n") % len(cycle)]

    for guard in (True, False):
        spec = {"policy": "always_small", "thinking_tokens": 200, "duplicate_guard": guard}
        routed = route(spec, script, script)
        assert ("duplicate" in [step.end for step in routed.trace.steps]) is guard
        assert len(routed.trace.steps) < 8 or not guard
        assert routed.text.endswith("</think>\n\n7")


def test_eos_and_the_end_of_thinking_inside_a_step():
    routed = route("always_small", after(f"<think>\n3*4{END}", END), after("", END))
    # no delimiter and no answer behind the end of the text
    assert routed.text == "<think>\n3*4"
    assert [step.end for step in routed.trace.steps] == ["eos"]
    routed = route("always_small", after(f"<think>\n3</think>4{END}", END), after("", END))
    assert [step.text for step in routed.trace.steps] == ["<think>\n3</think>", "4"]


def test_who_answers():
    for answer, writer in ((None, "large"), ("small", "small"), ("policy", "small")):
        spec = {"policy": {"policy": "glimprouter", "threshold": 9.0}}
        if answer:
            spec["answer"] = answer
        routed = route(spec, after(WHOLE, END), after(WHOLE, END))
        assert routed.trace.steps[-1].pieces[0].writer == writer
    closed = vocabulary().encode("<think>\n\n</think>\n\n")
    words = vocabulary()
    both = Scripted(lambda before: f"7{END}", prompt_length=len(closed))
    router = Router(both, both, "always_small", small_vocabulary=words, large_vocabulary=words)
    routed = asyncio.run(router.run(tuple(closed)))
    assert kinds(routed) == [("answer", "eos", ["small"])]


def test_specreason_keeps_or_rewrites():
    spec = {"policy": {"policy": "specreason", "score": "likelihood", "threshold": 8.0}}
    kept = route(spec, after(WHOLE, END), after("", END))
    assert [w for _, _, w in kinds(kept)][:3] == [["small"]] * 3
    assert kept.trace.steps[0].score == pytest.approx(8.91, abs=0.01)
    spec["policy"]["threshold"] = 8.95
    again = route(spec, after(WHOLE, END), after(WHOLE, END))
    assert [w for _, _, w in kinds(again)][:3] == [["large"]] * 3
    assert again.trace.steps[0].draft_tokens > 0


def test_speculative_thinking_hands_over_at_a_cue_and_recapitulates():
    text = f"<think>\nwait,3\n\nwait,4\n\n5+1=6\n\n</think>7{END}"
    policy = {"policy": "speculative_thinking", "large_tokens": 2, "recap_after": 0}
    routed = route({"policy": policy}, after(text, END), after(text, END))
    assert [w for _, _, w in kinds(routed)][:3] == [
        ["large", "small"], ["large", "small"], ["small"],
    ]  # fmt: skip
    assert [step.cue for step in routed.trace.steps[:3]] == ["negative", "negative", None]
    policy.update(recap_after=2, recap_text="Wait", recap_tokens=3)
    recap = route({"policy": policy}, after(text, "9\n\n</think>"), after(text, "8,8,8,8,8\n\n"))
    step = recap.trace.steps[1]
    assert step.cue == "recap"
    assert [p.writer for p in step.pieces] == ["large", "router", "large", "small"]


def test_chance_is_the_requests_own():
    endless = lambda before: f"{before.count(chr(10) * 2) % 90}+1\n\n"  # noqa: E731
    spec = {"policy": {"policy": "random", "share": 0.3}, "thinking_tokens": 1200, "max_steps": 300}
    first, second = (route(spec, endless, endless) for _ in range(2))
    assert kinds(first) == kinds(second)
    assert first.trace.large_step_share == pytest.approx(0.3, abs=0.08)


class Dying(Scripted):
    """A model that fails after some tokens."""

    def __init__(self, script, role, tokens):
        super().__init__(script)
        self.role, self.tokens = role, tokens

    async def generate(self, ask):
        from tokenlens.routing import Chunk

        async for chunk in super().generate(ask):
            if self.tokens:
                kept = chunk.ids[: self.tokens]
                yield Chunk(kept, "", len(kept), chunk.signals, None)
            raise BackendError(self.role, "unreachable", "gone")


@pytest.mark.parametrize("tokens", [0, 2])
def test_the_other_model_goes_on_where_one_fails(tokens):
    small = Dying(after(WHOLE, END), "small", tokens)
    routed = route("always_small", small, after(WHOLE, END))
    assert routed.text + END == WHOLE
    assert "unreachable" in routed.trace.steps[0].fallback
    writers = [p.writer for p in routed.trace.steps[0].pieces]
    assert writers == (["small", "large"] if tokens else ["large"])
    with pytest.raises(BackendError, match="unreachable"):
        route({"policy": "always_small", "fallback": False}, small, after(WHOLE, END))
    with pytest.raises(BackendError, match="large"):
        route("always_small", small, Dying(after(WHOLE, END), "large", 0))
