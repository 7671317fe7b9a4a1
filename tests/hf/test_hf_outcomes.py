"""Odd inputs have a clear outcome: an error that names it, or a row left alone and counted."""

import pytest
import torch
from hf_models import PROMPTS, START, STEPS, VOCAB, TinyModel, batch, new_tokens
from hf_reference import Recipe

from tokenlens.hf import generate_kwargs, traces
from tokenlens.spec import SpecError


class Stub:
    """A tokenizer of a given size whose tokens are numbers."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def encode(self, text, add_special_tokens=False):
        return [int(word) for word in text.split()]

    def decode(self, ids, **kwargs):
        return " ".join(str(int(i)) for i in ids)


def soft_kwargs(subject, recipe=None):
    return generate_kwargs(subject.model, None, subject.spec(recipe))


@pytest.fixture
def padded():
    """A model that is wider than its tokenizer, with loud logits in the padding."""
    own = TinyModel("qwen3")
    own.model.resize_token_embeddings(128, mean_resizing=False)
    with torch.no_grad():
        # Padding twice as loud as any token, in what is read and in what is fed.
        own.model.get_output_embeddings().weight[VOCAB:] = (
            own.model.get_output_embeddings().weight[:32] * 2
        )
        own.model.get_input_embeddings().weight[VOCAB:] = torch.nan
    return own


def test_padded_vocabulary_is_never_mixed(padded):
    assert padded.model.config.vocab_size == 128
    spec = padded.spec(Recipe(top_k=64, top_p=1.0, temperature=2.0, max_entries=64))
    kwargs = generate_kwargs(padded.model, Stub(VOCAB), spec)
    output = padded.generate(**kwargs)
    steps = [step for trace in traces(kwargs) for step in trace.steps if step.latent]
    assert len(steps) > STEPS
    assert all(token < VOCAB for step in steps for token, _ in step.entries)
    for row, trace in enumerate(traces(kwargs)):
        for following, step in enumerate(trace.steps[:-1], start=1):
            assert not step.latent or torch.isfinite(output.logits[following][row]).all()


def test_size_that_only_the_padding_could_serve(padded):
    with pytest.raises(SpecError, match="below the vocabulary's 96"):
        generate_kwargs(padded.model, Stub(VOCAB), padded.spec(phase={
            "think_start": [START], "think_end": [100]
        }))  # fmt: skip


def test_tokenizer_that_is_larger_than_the_model(subject):
    expected = subject.generate(**soft_kwargs(subject))
    output = subject.generate(**generate_kwargs(subject.model, Stub(200), subject.spec()))
    assert torch.equal(output.sequences, expected.sequences)


def first_token_spec(subject):
    spec = subject.spec()
    spec["methods"][0]["quirks"] = {"start": "first_token"}
    return spec


def test_no_prompt_at_all(subject):
    # generate() begins with the model's first token of a text.
    spec = first_token_spec(subject)
    kwargs = generate_kwargs(subject.model, None, spec)
    output = subject.model.generate(
        bos_token_id=1, max_new_tokens=6, do_sample=False, pad_token_id=0, **kwargs
    )
    assert output[0].tolist() == [1, *self_tokens(subject, [1], 6)]
    assert traces(kwargs)[0].steps[0].position == 1


def self_tokens(subject, prompt, steps):
    """The reference, thinking from the first token."""
    from hf_reference import decode

    return decode(
        subject.model, prompt, Recipe(), steps=steps, start=prompt[0], end=subject.end
    ).tokens


def test_prompt_of_no_columns(subject):
    empty = {"input_ids": torch.zeros(1, 0, dtype=torch.int64)}
    settings = {"bos_token_id": 1, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    kwargs = generate_kwargs(subject.model, None, first_token_spec(subject))
    # What generate() says without a spec, it says with one.
    generate = subject.model.generate
    assert outcome_of(generate, **empty, **settings, **kwargs) == outcome_of(
        generate, **empty, **settings
    )


def outcome_of(function, **arguments):
    """The error of a call, as text."""
    try:
        function(**arguments)
    except Exception as error:
        return repr(error)
    return None


def test_prompt_of_padding_leaves_the_others_alone(subject):
    inputs = batch(PROMPTS)
    inputs["attention_mask"][1] = 0
    kwargs = soft_kwargs(subject)
    output = subject.model.generate(
        **inputs, **kwargs, max_new_tokens=STEPS, do_sample=False, pad_token_id=0
    )
    for row in (0, 2):
        tokens = output[row, len(PROMPTS[0]) :].tolist()
        assert tokens == subject.reference(PROMPTS[row]).tokens
    # The row has no prompt: nothing opens its thinking, and its first token stands at 0.
    trace = traces(kwargs)[1]
    assert trace.counts.tokens == STEPS
    assert trace.steps[0].position == 0
    assert trace.steps[0].phase == "prompt"


@pytest.mark.parametrize("poison", [float("nan"), float("-inf"), float("inf")])
def test_unusable_logits_stay_in_their_row(subject, poison):
    clean = subject.generate(**soft_kwargs(subject))
    calls = []

    def spoil(module, args, output):
        calls.append(output)
        if len(calls) == 3:
            output = output.clone()
            output[1] = poison
            return output
        return None

    handle = subject.model.get_output_embeddings().register_forward_hook(spoil)
    kwargs = soft_kwargs(subject)
    try:
        output = subject.generate(**kwargs)
    finally:
        handle.remove()
    assert torch.equal(output.sequences[[0, 2]], clean.sequences[[0, 2]])
    assert [trace.counts.invalid_steps for trace in traces(kwargs)] == [0, 1, 0]
    step = traces(kwargs)[1].steps[2]
    assert (step.valid, step.latent, step.forced) == (False, False, False)
    # The row goes on from the token that generate() took.
    assert torch.isfinite(output.logits[3]).all()
    assert traces(kwargs)[1].counts.tokens == STEPS


def test_prompt_without_a_marker_is_plain(subject):
    prompts = [[1, 41, 42, 43]]
    output = subject.generate(prompts, **soft_kwargs(subject))
    expected = subject.reference(prompts[0])
    assert new_tokens(output, prompts)[0].tolist() == expected.tokens
    if "thinking" not in expected.phases:
        assert torch.equal(output.sequences, subject.generate(prompts).sequences)
