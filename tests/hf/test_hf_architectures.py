"""A left-padded batch, its rows alone, and an independent loop make the same tokens and logits."""

import pytest
import torch
from hf_models import ARCHITECTURES, PROMPTS, STEPS, new_tokens, up_to
from hf_reference import Recipe

import tokenlens.hf.embedding
from tokenlens.hf import generate_kwargs, traces

TOLERANCE = 1e-4

# One row for each kind of request, so that every kind stands beside every other.
MIXED = {
    "soft": (PROMPTS[0], Recipe()),
    "plain": (PROMPTS[1], Recipe(soft=False)),
    "gumbel": (PROMPTS[2], Recipe(gumbel=0.5, seed=11)),
    "top1": (PROMPTS[0], Recipe(top1=True)),
    "no thinking": (PROMPTS[1], Recipe(soft=False, end_after=0)),
    "answer now": (PROMPTS[2], Recipe(end_after=4)),
    "cold stop": (PROMPTS[1], Recipe(cold_stop=(4.0, 3))),
    "filters": (PROMPTS[2], Recipe(temperature=1.3, top_k=0, top_p=0.7, min_p=0.1, max_entries=5)),
    "no marker": ([1, 41, 42, 43], Recipe()),
}


def assert_same(output, expected, row, prompts):
    """Tokens equal and logits close, as far as the reference goes."""
    tokens = new_tokens(output, prompts)[row].tolist()[: len(expected.tokens)]
    assert tokens == expected.tokens
    for step, logits in enumerate(expected.logits):
        assert (output.logits[step][row] - logits).abs().max() < TOLERANCE, (row, step)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_batch_is_the_reference(subjects, name):
    subject = subjects(name)
    kwargs = generate_kwargs(subject.model, None, subject.spec())
    output = subject.generate(**kwargs, eos_token_id=subject.eos)
    expected = [subject.reference(prompt, eos=subject.eos) for prompt in PROMPTS]
    # Row 0 goes from soft to hard in the middle; row 1 meets the end of the text while latent.
    assert 3 < sum(expected[0].latent) < STEPS - 3
    assert expected[0].tokens[sum(expected[0].latent)] == subject.end
    assert expected[1].tokens[-1] == subject.eos
    assert expected[1].phases[-1] == "thinking"
    for row in range(3):
        assert_same(output, expected[row], row, PROMPTS)
        steps = traces(kwargs)[row].steps
        assert [step.latent for step in steps] == expected[row].latent


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_spec_for_each_row(subjects, name):
    subject = subjects(name)
    prompts = [prompt for prompt, _ in MIXED.values()]
    specs = [subject.spec(recipe) for _, recipe in MIXED.values()]
    kwargs = generate_kwargs(subject.model, None, specs)
    output = subject.generate(prompts, **kwargs)
    for row, (prompt, recipe) in enumerate(MIXED.values()):
        expected = subject.reference(prompt, recipe)
        assert_same(output, expected, row, prompts)
        trace = traces(kwargs)[row]
        assert [step.latent for step in trace.steps] == expected.latent
        assert trace.counts.cold_stops == expected.cold_stops
    assert traces(kwargs)[list(MIXED).index("cold stop")].counts.cold_stops == 1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_batch_is_its_rows_alone(subjects, name):
    subject = subjects(name)
    specs = [subject.spec(Recipe()), subject.spec(Recipe(gumbel=0.5, seed=5)), subject.spec()]
    together = subject.generate(**generate_kwargs(subject.model, None, specs))
    for row, prompt in enumerate(PROMPTS):
        alone = subject.generate([prompt], **generate_kwargs(subject.model, None, specs[row]))
        assert new_tokens(together)[row].tolist() == new_tokens(alone, [prompt])[0].tolist()
        for step in range(STEPS):
            difference = together.logits[step][row] - alone.logits[step][0]
            assert difference.abs().max() < TOLERANCE


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_comparison_fails_without_the_mixture(subjects, name, monkeypatch):
    monkeypatch.setattr(
        tokenlens.hf.embedding, "substitute", lambda embeddings, latent, mixture: embeddings
    )
    subject = subjects(name)
    output = subject.generate(**generate_kwargs(subject.model, None, subject.spec()))
    expected = subject.reference(PROMPTS[0])
    # The first step sees the prompt alone; the second is the first that is fed a mixture.
    assert torch.allclose(output.logits[0][0], expected.logits[0], atol=TOLERANCE)
    assert (output.logits[1][0] - expected.logits[1]).abs().max() > 100 * TOLERANCE


def test_batch_of_every_seed_of_noise_is_its_own(subject):
    # The same prompt with three seeds: noise is keyed on the seed, not on the row.
    specs = [subject.spec(Recipe(gumbel=1.0, seed=seed)) for seed in (1, 2, 1)]
    output = subject.generate([PROMPTS[0]] * 3, **generate_kwargs(subject.model, None, specs))
    rows = [up_to(row.tolist(), subject.end) for row in new_tokens(output)]
    assert rows[0] == rows[2]
    assert rows[0] != rows[1]
