"""A trace is replayed: what was fed is what it says, and whatever it says wrongly is found."""

import json
import random

import pytest
import torch
from hf_models import ARCHITECTURES, PROMPTS, START
from hf_reference import Recipe
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenlens.hf.embedding
import tokenlens.hf.replay
from tokenlens.hf import UnsupportedError, generate_kwargs, traces
from tokenlens.hf.verify import TOLERANCE, verify_trace
from tokenlens.trace import Trace

SPECS = {
    "soft": {"methods": [{"method": "soft_thinking"}]},
    "gumbel": {"methods": [{"method": "soft_thinking"}, {"method": "gumbel_noise"}], "seed": 3},
    "dirichlet": {"methods": [{"method": "soft_thinking"}, {"method": "dirichlet_noise"}]},
    "blends": {"methods": [{"method": "lead", "gate": {"of": "raw", "trend": True}}]},
    "router": {"methods": [{"method": "think_router"}]},
    "ended": {"methods": [{"method": "soft_thinking"}, {"method": "answer_now", "after": 5}]},
    "edits": {"methods": [{"method": "soft_thinking"}, {"method": "edt"}]},
    "plain": {"methods": []},
}


def recorded(subject, name, prompts=PROMPTS, **settings):
    """Full traces of one spec."""
    marked = {"phase": {"think_start": [START], "think_end": [subject.end]}}
    spec = {**SPECS[name], **marked, "trace": {"level": "full"}}
    kwargs = generate_kwargs(subject.model, None, spec)
    subject.generate(prompts, **kwargs, **settings)
    return traces(kwargs)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_was_fed_is_what_the_trace_says(subjects, architecture):
    subject = subjects(architecture)
    for index, name in enumerate(SPECS):
        trace = recorded(subject, name)[index % 3]
        found = verify_trace(subject.model, None, trace)
        assert found.holds, (name, found)
        assert found.steps == len(trace.steps)
        assert found.mixtures == sum(step.latent for step in trace.steps[:-1])
        if found.tokens is not None:
            assert found.verdict == "as the trace says"
            assert found.tokens.largest > 50 * TOLERANCE


def test_samples_of_one_seed_are_replayed_with_their_own_noise(subject):
    one = recorded(subject, "gumbel", do_sample=True, num_return_sequences=2)
    assert [trace.sample for trace in one] == [0, 1] * 3
    assert all(verify_trace(subject.model, None, trace).holds for trace in one)
    swapped = one[1].model_copy(update={"sample": 0})
    assert verify_trace(subject.model, None, swapped).weights > TOLERANCE


def test_an_engine_that_loses_the_mixtures_is_found(subject, monkeypatch):
    monkeypatch.setattr(
        tokenlens.hf.embedding, "substitute", lambda embeddings, latent, mixture: embeddings
    )
    found = verify_trace(subject.model, None, recorded(subject, "soft")[0])
    assert not found.holds
    assert found.verdict == "not what the trace says"
    assert found.tokens.largest < TOLERANCE < found.traced.largest


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_the_trace_says_wrongly_is_found(number):
    """A weight, an id, a token, a mode or the prompt is changed somewhere."""
    subject, trace = changed_subject()
    choose = random.Random(number)
    data = trace.model_dump(mode="json")
    latent = [place for place, step in enumerate(data["steps"][:-2]) if step["latent"]]
    step = data["steps"][choose.choice(latent)]
    entry = choose.choice(step["entries"][:3])
    other = next(i for i in iter(lambda: choose.randrange(8, 90), None) if i != entry[0])
    match choose.choice(["weight", "id", "mode", "token", "prompt"]):
        case "weight":
            entry[1] *= choose.choice([0.5, 1.5])
        case "id":
            entry[0] = other
        case "mode":
            step["latent"] = False
        case "token":
            step["token"] = next(i for i in (8, 9) if i != step["token"])
            step["latent"] = False
        case "prompt":
            # A model with two layers need not look at a token that is far away, but at the last.
            place = len(data["prompt_ids"]) - 1
            data["prompt_ids"][place] = 8 + (data["prompt_ids"][place] + 1) % 80
    changed = Trace.model_validate_json(json.dumps(data))
    assert not verify_trace(subject.model, None, changed).holds


def test_concept_tokens_of_one_entry_tell_nothing(subject):
    spec = subject.spec(Recipe(top_k=1))
    kwargs = generate_kwargs(subject.model, None, spec)
    subject.generate(PROMPTS[:1], **kwargs)
    found = verify_trace(subject.model, None, traces(kwargs)[0])
    assert found.holds
    assert not found.tells
    assert found.verdict == "cannot be told from tokens"


def test_several_passes_say_what_one_says(subject, monkeypatch):
    trace = recorded(subject, "gumbel")[0]
    one = verify_trace(subject.model, None, trace)
    monkeypatch.setattr(tokenlens.hf.replay, "LOGIT_BYTES", 4 * 96 * 5)
    several = verify_trace(subject.model, None, trace)
    assert several.holds
    assert abs(several.tokens.largest - one.tokens.largest) < TOLERANCE


def test_a_text_that_went_on_behind_the_models_end_is_replayed_to_its_own(subject, monkeypatch):
    trace = recorded(subject, "soft")[1]
    config = subject.model.generation_config
    monkeypatch.setattr(config, "eos_token_id", trace.steps[2].token)
    assert verify_trace(subject.model, None, trace).holds
    monkeypatch.setattr(config, "eos_token_id", [trace.steps[-1].token, 95])
    assert verify_trace(subject.model, None, trace).holds


def test_processors_of_the_call_are_given_again(subject):
    from transformers import RepetitionPenaltyLogitsProcessor

    penalty = RepetitionPenaltyLogitsProcessor(1.5)
    trace = recorded(subject, "soft", repetition_penalty=1.5)[0]
    assert not verify_trace(subject.model, None, trace).holds
    assert verify_trace(subject.model, None, trace, logits_processor=[penalty]).holds


def test_nothing_stays_on_the_model(subject):
    trace = recorded(subject, "soft")[0]
    before = hooks(subject.model)
    subject.model.train()
    frozen = next(subject.model.children()).eval()
    verify_trace(subject.model, None, trace)
    assert subject.model.training
    assert not frozen.training
    subject.model.eval()
    # transformers leaves hooks of its own behind that record a layer's output.
    assert hooks(subject.model) == before


def hooks(model):
    """How many hooks each module has."""
    return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": ()}, '"level": "full"'),
        ({"prompt_ids": ()}, "prompt_ids: got none; allowed: the 8 tokens"),
        ({"prompt_ids": (1, 2)}, "prompt_ids: got 2 tokens"),
        ({"prompt_ids": (1, 96, *range(2, 8))}, "token 96; allowed: 0 to 95"),
    ],
)
def test_what_is_missing_is_named(subject, change, words):
    trace = recorded(subject, "soft")[0]
    with pytest.raises(UnsupportedError) as caught:
        verify_trace(subject.model, None, trace.model_copy(update=change))
    assert words in str(caught.value)


def test_gaps_cut_entries_and_lent_vectors_are_named(subject):
    trace = recorded(subject, "soft")[0]
    gap = trace.model_copy(update={"steps": (*trace.steps[:3], *trace.steps[4:])})
    with pytest.raises(UnsupportedError, match="gaps"):
        verify_trace(subject.model, None, gap)
    spec = {**subject.spec(), "trace": {"level": "full", "max_entries": 2}}
    kwargs = generate_kwargs(subject.model, None, spec)
    subject.generate(PROMPTS[:1], **kwargs)
    with pytest.raises(UnsupportedError, match="max_entries: got 2"):
        verify_trace(subject.model, None, traces(kwargs)[0])
    spec = {**subject.spec(), "methods": [{"method": "coconut"}]}
    kwargs = generate_kwargs(subject.model, None, spec)
    subject.generate(PROMPTS[:1], **kwargs)
    with pytest.raises(UnsupportedError, match="last hidden state"):
        verify_trace(subject.model, None, traces(kwargs)[0])


def test_prompts_stand_in_full_traces_alone_and_within_bounds(subject, monkeypatch):
    assert [list(trace.prompt_ids) for trace in recorded(subject, "soft")] == PROMPTS
    monkeypatch.setattr("tokenlens.trace.records.MAX_PROMPT_IDS", 4)
    assert [bool(trace.prompt_ids) for trace in recorded(subject, "soft")] == [False, True, False]
    monkeypatch.undo()
    spec = {**subject.spec(), "trace": {"level": "summary"}}
    kwargs = generate_kwargs(subject.model, None, spec)
    subject.generate(PROMPTS, **kwargs)
    assert {trace.prompt_ids for trace in traces(kwargs)} == {()}


def changed_subject(made=[]):  # noqa: B006  # hypothesis wants no fixtures of a test's own scope
    if not made:
        from hf_models import TinyModel

        subject = TinyModel("qwen3")
        with torch.random.fork_rng():
            made.append((subject, recorded(subject, "gumbel")[0]))
    return made[0]
