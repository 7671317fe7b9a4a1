"""Two Hugging Face models in one process, against stock ``generate()`` of each."""

import asyncio
import math
import threading

import pytest
import torch
from routing_support import (
    EOS_IDS,
    MAX_TOKENS,
    VERBAL,
    alone,
    model,
    prompts,
    turn,
    turned,
    vocabulary,
)
from test_routing_boundaries import byte_level
from transformers import AutoModelForCausalLM, MistralConfig

from tokenlens.routing import Ask, Router, RouterVocabulary, Sampling
from tokenlens.routing.hf import HFBackend
from tokenlens.spec import SpecError


def run_all(spec, max_sessions=4, count=8, one_by_one=False, probe=None, **kwargs):
    """Every prompt through one router at once, on fewer caches than requests."""
    words = vocabulary()

    async def go():
        small, large = (
            HFBackend(model(role), words, max_sessions=max_sessions) for role in ("small", "large")
        )
        router = Router(small, large, spec, small_vocabulary=words, large_vocabulary=words)
        calls = [router.run(ids, max_tokens=MAX_TOKENS, **kwargs) for ids in prompts(count)]
        try:
            if one_by_one:
                return [await call for call in calls]
            return await asyncio.gather(*calls)
        finally:
            await router.close()
            if probe is not None:
                probe(small, large)

    return asyncio.run(go())


def glimpse(threshold, **fields):
    """GlimpRouter at a threshold, nothing that would cut a text short."""
    policy = {"policy": "glimprouter", "threshold": threshold}
    return {"policy": policy, "duplicate_guard": False, **fields}


@pytest.mark.parametrize(
    ("role", "spec"),
    [
        ("large", glimpse(-math.inf)),
        ("small", glimpse(math.inf)),
        # finite ones that are never and always passed, so that every step is probed
        ("large", glimpse(-1e9, answer="policy")),
        ("small", glimpse(1e9, answer="policy")),
    ],
)
def test_one_model_alone_token_for_token(role, spec):
    assert [routed.ids for routed in run_all(spec)] == [alone(role, ids) for ids in prompts()]


def test_mixed_steps_are_what_each_model_writes_there():
    """Each step against stock generation of its writer from exactly that context."""
    routed = run_all(glimpse(0.4))
    assert 0 < sum(one.trace.large_step_share for one in routed) < len(routed)
    for ids, one in list(zip(prompts(), routed))[:3]:
        context = list(ids)
        for step in one.trace.steps:
            (piece,) = step.pieces
            expected = alone(piece.writer, tuple(context), piece.tokens)
            count = len(context) - len(ids)
            assert one.ids[count : count + piece.tokens] == expected
            context += expected
            if step.signal is not None:
                assert (step.signal > 0.4) == (piece.writer == "large")


def test_the_probe_reads_the_entropy_of_the_full_vocabulary():
    (routed,) = run_all(glimpse(0.4), count=1)
    context = torch.tensor([[*prompts(1)[0], *routed.ids]])
    with torch.inference_mode():
        logits = model("small")(context).logits[0].double()
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    at = len(prompts(1)[0]) - 1
    for step in routed.trace.steps:
        if step.phase == "thinking":
            assert step.signal == pytest.approx(entropy[at].item(), abs=1e-5)
            assert step.signal_name == "raw_entropy"
        at += sum(piece.tokens for piece in step.pieces)


@pytest.mark.parametrize(
    ("signal", "name"),
    [("entropy", "raw_entropy"), ("max_probability", "1 - max_probability"),
     ("concept_entropy", "concept_entropy")],
)  # fmt: skip
def test_a_target_share_of_any_signal(signal, name):
    policy = {"policy": "glimprouter", "target_share": 0.3, "signal": signal}
    routed = run_all({"policy": policy, "duplicate_guard": False}, one_by_one=True)
    steps = [s for one in routed for s in one.trace.steps if s.phase == "thinking"]
    large = [step for step in steps if step.pieces[0].writer == "large"]
    assert len(steps) > 80
    assert len(large) / len(steps) == pytest.approx(0.3, abs=0.12)
    assert {step.signal_name for step in steps} == {name}
    # The threshold is what the running quantile was at that step.
    assert all(step.signal >= step.threshold for step in large)


def test_any_company_gives_the_same_text():
    spec = {"policy": "random"}
    sampling = Sampling(temperature=0.7, top_p=0.9, top_k=20, seed=5)
    together = run_all(spec, max_sessions=8, sampling=sampling)
    crowded = run_all(spec, max_sessions=3, sampling=sampling)
    apart = run_all(spec, one_by_one=True, sampling=sampling)
    assert [r.ids for r in together] == [r.ids for r in crowded] == [r.ids for r in apart]
    other = run_all(spec, sampling=Sampling(temperature=0.7, seed=6))
    assert [r.ids for r in together] != [r.ids for r in other]


def test_a_cache_that_is_not_rolled_back_shows(monkeypatch):
    """The guard switched off: what a thrown-away probe left in the cache is taken for context."""
    from tokenlens.routing import hf_worker

    spec = {"policy": {"policy": "specreason", "score": "likelihood", "threshold": 7.0}}
    right = [routed.ids for routed in run_all(spec)]
    monkeypatch.setattr(hf_worker, "_common", lambda held, wanted, limit: min(len(held), limit))
    assert [routed.ids for routed in run_all(spec)] != right


def test_scores_are_the_large_models_probabilities():
    words, context, draft = vocabulary(), prompts(1)[0], alone("small", prompts(1)[0], 14)

    async def go():
        backend = HFBackend(model("large"), words)
        found = await backend.log_probs("a", context, draft)
        again = await backend.log_probs("a", context, draft)
        await backend.close()
        return found, again

    found, again = asyncio.run(go())
    with torch.inference_mode():
        logits = model("large")(torch.tensor([[*context, *draft]])).logits[0]
    log_p = logits.log_softmax(-1)[len(context) - 1 : -1]
    expected = log_p.gather(1, torch.tensor(draft)[:, None])[:, 0].tolist()
    assert found == pytest.approx(expected, abs=1e-4)
    assert again == pytest.approx(found, abs=1e-5)


def test_a_verbal_score_is_the_large_models_answer():
    """The protocol against plain forward passes; what a tiny model answers means nothing."""
    words, ids = vocabulary(), prompts(2)[1]
    spec = {"policy": {"policy": "specreason", **VERBAL}, "duplicate_guard": False}
    routed = run_all(spec, count=2)[1]
    steps = [step for step in routed.trace.steps if step.phase == "thinking"]
    assert {step.draft_tokens > 0 for step in steps} == {True, False}
    context = list(ids)
    for step in steps:
        draft = alone("small", tuple(context), MAX_TOKENS)
        ends = [words.piece(i) in ("\n\n", "</think>") or i in EOS_IDS for i in draft]
        draft = draft[: ends.index(True) + 1]
        text = f"{words.decode([*context, *draft])}<|im_end|>\n<|im_start|>user\n9-5=4?<|im_end|>\n"
        asked = words.encode(text + "<|im_start|>assistant\n<think>\n")
        with torch.inference_mode():
            top = model("large")(torch.tensor([asked])).logits[0, -1].softmax(-1).topk(20)
        digits = {words.piece(i): p for p, i in zip(*(x.tolist() for x in top))}
        numbers = {int(k): p for k, p in digits.items() if k.isdecimal()}
        score = sum(k * p for k, p in numbers.items()) / sum(numbers.values())
        assert step.score == pytest.approx(score, abs=1e-3)
        assert step.pieces[0].writer == ("small" if score >= 8.0 else "large")
        context += words.encode(step.text)


def test_a_request_that_goes_away_frees_its_cache():
    words, before = vocabulary(), set(threading.enumerate())

    async def go():
        backend = HFBackend(model("small"), words, max_sessions=1)
        ask = Ask("gone", prompts(1)[0], 500, Sampling(), stream=True)
        chunks = backend.generate(ask)
        await anext(chunks)
        await chunks.aclose()
        await backend.release("gone")
        # the only cache there is: without the abort this would wait for 500 tokens
        other = [c async for c in backend.generate(Ask("next", prompts(1)[0], 3, Sampling()))]
        await backend.close()
        return other, backend

    other, backend = asyncio.run(go())
    assert sum(len(chunk.ids) for chunk in other) == 3
    assert "gone" not in backend._worker._slots
    assert not [t for t in set(threading.enumerate()) - before if t.name == "tokenlens-hf"]


def test_streamed_text_is_the_text():
    pieces = []
    (routed,) = run_all(glimpse(0.4), count=1, emit=pieces.append)
    assert "".join(pieces) == routed.text
    assert len(pieces) > 10


def test_an_error_in_the_model_reaches_the_caller():
    words = vocabulary()

    async def go():
        backend = HFBackend(model("small"), words)
        try:
            with pytest.raises((IndexError, RuntimeError)):
                # an id that no embedding has
                _ = [c async for c in backend.generate(Ask("a", (1, 4000), 3, Sampling()))]
            good = [c async for c in backend.generate(Ask("a", prompts(1)[0], 3, Sampling()))]
            with pytest.raises(SpecError, match="positions"):
                _ = [c async for c in backend.generate(Ask("a", (1,) * 1024, 3, Sampling()))]
        finally:
            await backend.close()
        return good

    assert sum(len(chunk.ids) for chunk in asyncio.run(go())) == 3


def test_models_that_cannot_forget_are_refused():
    config = MistralConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=128, sliding_window=16,
    )  # fmt: skip
    with pytest.raises(SpecError, match="sliding_attention"):
        HFBackend(AutoModelForCausalLM.from_config(config), vocabulary())


def test_two_vocabularies_hand_over_text_and_say_so():
    words, (others, network) = vocabulary(), turned()

    async def go(spec):
        small, large = HFBackend(model("small"), words), HFBackend(network, others)
        router = Router(small, large, spec, small_vocabulary=words, large_vocabulary=others)
        assert router.handover == "text"
        both = {"small": prompts(2)[1], "large": tuple(turn(i) for i in prompts(2)[1])}
        try:
            return await router.run(both, max_tokens=MAX_TOKENS)
        finally:
            await router.close()

    same = run_all(glimpse(0.4), count=2)[1]
    routed = asyncio.run(go(glimpse(0.4)))
    # word for word: this tokenizer splits the text in one way only
    assert routed.text == same.text
    assert routed.trace.handover == "text"
    readings = [reading for step in routed.trace.steps for reading in step.readings]
    assert {reading.reader for reading in readings} == {"small", "large"}
    assert all(r.exact and r.read_tokens == r.written_tokens for r in readings)
    assert same.trace.handover == "ids"
    assert not any(step.readings for step in same.trace.steps)


def test_retokenised_text_is_visible():
    """A reader that spells differently: letter by letter."""
    from tokenlens.routing.transcript import Transcript

    words, letters = vocabulary(), RouterVocabulary(byte_level())
    text = "<think>\n3*4=12\n\n"
    transcript = Transcript(
        {"small": (1,), "large": (2,)}, {"small": words, "large": letters}, "text"
    )
    ids = words.encode(text)
    transcript.write("small", ids, "", len(ids))
    context, (reading,) = transcript.context("large")
    assert letters.decode(context[1:]) == text
    assert (reading.written_tokens, reading.read_tokens) == (len(ids), len(context) - 1)
    assert reading.read_tokens != reading.written_tokens
    assert reading.exact
    # read once, and the writer keeps its own ids
    assert transcript.context("large") == (context, [])
    assert transcript.context("small") == ((1, *ids), [])
