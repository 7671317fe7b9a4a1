"""What asks for nothing changes nothing: soft off, one entry, and temperature to zero."""

import pytest
import torch
from hf_models import ARCHITECTURES, PROMPTS, new_tokens
from hf_reference import Recipe

from tokenlens.hf import generate_kwargs

NOTHING = {
    "top-k 1": Recipe(top_k=1),
    "one entry": Recipe(max_entries=1),
    "temperature 0": Recipe(temperature=0.0),
    "temperature 1e-4": Recipe(temperature=1e-4),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_empty_spec_is_plain_bit_for_bit(subjects, name):
    subject = subjects(name)
    plain = subject.generate()
    output = subject.generate(**generate_kwargs(subject.model, None, {}))
    assert torch.equal(output.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(output.logits, plain.logits))
    assert all(torch.equal(a, b) for a, b in zip(output.scores, plain.scores))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("recipe", NOTHING.values(), ids=NOTHING)
def test_mixture_of_one_entry_is_plain(subjects, name, recipe):
    subject = subjects(name)
    plain = subject.generate()
    output = subject.generate(**generate_kwargs(subject.model, None, subject.spec(recipe)))
    assert torch.equal(output.sequences, plain.sequences)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_untouched_rows_of_a_mixed_batch_are_bit_equal(subjects, name):
    subject = subjects(name)
    prompts = [*PROMPTS, PROMPTS[0]]
    plain = subject.generate(prompts)
    specs = [subject.spec(), {}, subject.spec(Recipe(gumbel=0.7)), {"trace": {"level": "full"}}]
    output = subject.generate(prompts, **generate_kwargs(subject.model, None, specs))
    touched, untouched = [0, 2], [1, 3]
    assert torch.equal(output.sequences[untouched], plain.sequences[untouched])
    for step in range(len(plain.logits)):
        assert torch.equal(output.logits[step][untouched], plain.logits[step][untouched])
        assert torch.equal(output.scores[step][untouched], plain.scores[step][untouched])
    assert not torch.equal(output.sequences[touched], plain.sequences[touched])


def test_untouched_rows_stay_bit_equal_when_everything_is_sampled(subject):
    specs = [subject.spec(), {}, {}]
    settings = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 20}
    torch.manual_seed(5)
    plain = subject.generate(**settings)
    torch.manual_seed(5)
    output = subject.generate(**settings, **generate_kwargs(subject.model, None, specs))
    # The sampler draws for the whole batch at once, so that no row shifts the draws of another.
    assert torch.equal(output.sequences[1:], plain.sequences[1:])
    assert not torch.equal(output.sequences[0], plain.sequences[0])


def test_specs_without_latent_methods_leave_the_embedding_alone(subject):
    recipe = Recipe(soft=False, end_after=2)
    output = subject.generate(**generate_kwargs(subject.model, None, subject.spec(recipe)))
    for row, prompt in enumerate(PROMPTS):
        assert new_tokens(output)[row].tolist() == subject.reference(prompt, recipe).tokens
