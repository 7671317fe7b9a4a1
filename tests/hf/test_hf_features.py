"""What ``generate()`` offers besides tokens still works, and means what it meant."""

import pytest
import torch
import transformers
from hf_models import PROMPTS, START, STEPS, batch, new_tokens, up_to
from hf_reference import Recipe
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from tokenlens.hf import generate_kwargs, traces
from tokenlens.routing.hf_cache import cache_argument

VERSION_4 = transformers.__version__.startswith("4.")


class Recorder(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self):
        self.puts, self.ended = [], 0

    def put(self, value):
        self.puts.append(value.clone())

    def end(self):
        self.ended += 1


class Forbid(LogitsProcessor):
    """Takes one token out."""

    def __init__(self, token):
        self.token, self.calls = token, 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        scores = scores.clone()
        scores[:, self.token] = -torch.inf
        return scores


class StopRowAfter(StoppingCriteria):
    """Stops one row at a length."""

    def __init__(self, row, length):
        self.row, self.length = row, length

    def __call__(self, input_ids, scores, **kwargs):
        done = torch.zeros(len(input_ids), dtype=torch.bool)
        done[self.row] = input_ids.shape[1] >= self.length
        return done


def soft_kwargs(subject, recipe=None, **more):
    return generate_kwargs(subject.model, None, subject.spec(recipe), **more)


def test_streamer_gets_every_token_and_the_end(subject):
    plain, soft = Recorder(), Recorder()
    subject.generate([PROMPTS[0]], streamer=plain)
    output = subject.generate([PROMPTS[0]], streamer=soft, **soft_kwargs(subject))
    assert [put.shape for put in soft.puts] == [put.shape for put in plain.puts]
    assert soft.ended == plain.ended == 1
    assert torch.cat([put.flatten() for put in soft.puts]).tolist() == output.sequences[0].tolist()


def test_user_processor_runs_before_the_spec(subject):
    forbid = Forbid(subject.reference(PROMPTS[0]).tokens[1])
    kwargs = soft_kwargs(subject, logits_processor=[forbid])
    output = subject.generate(**kwargs)
    assert forbid.calls == STEPS
    assert forbid.token not in new_tokens(output)
    for trace in traces(kwargs):
        assert all(forbid.token not in dict(step.entries) for step in trace.steps)


def test_user_criterion_stops_its_row_alone(subject):
    width = len(PROMPTS[0])
    kwargs = soft_kwargs(subject, stopping_criteria=[StopRowAfter(1, width + 3)])
    output = subject.generate(**kwargs, eos_token_id=95)
    free = subject.generate(**soft_kwargs(subject), eos_token_id=95)
    rows = new_tokens(output)
    assert rows[1].tolist() == new_tokens(free)[1, :3].tolist() + [0] * (STEPS - 3)
    assert torch.equal(rows[[0, 2]], new_tokens(free)[[0, 2]])


def test_sampled_answers_leave_thinking_alone(subject):
    greedy = subject.generate(**soft_kwargs(subject))
    thought = up_to(new_tokens(greedy)[0].tolist(), subject.end)
    answers = set()
    for seed in range(4):
        torch.manual_seed(seed)
        kwargs = soft_kwargs(subject)
        output = subject.generate(
            **kwargs, do_sample=True, temperature=2.0, top_p=0.99, top_k=0, repetition_penalty=1.0
        )
        row = new_tokens(output)[0].tolist()
        assert row[: len(thought)] == thought
        assert all(step.forced == (step.phase == "thinking") for step in traces(kwargs)[0].steps)
        answers.add(tuple(row[len(thought) :]))
    assert len(answers) > 1


def test_return_sequences_have_noise_of_their_own(subject):
    recipe = Recipe(gumbel=1.0, seed=3)
    settings = {"do_sample": True, "top_k": 1}
    one = subject.generate([PROMPTS[0]], **soft_kwargs(subject, recipe), **settings)
    three = subject.generate(
        [PROMPTS[0]], **soft_kwargs(subject, recipe), **settings, num_return_sequences=3
    )
    rows = [tuple(row) for row in new_tokens(three).tolist()]
    assert rows[0] == tuple(new_tokens(one)[0].tolist())
    assert len(set(rows)) == 3


def test_return_sequences_keep_each_prompt_its_spec(subject):
    specs = [subject.spec(Recipe(gumbel=1.0, seed=3)), {}]
    prompts = PROMPTS[:2]
    settings = {"do_sample": True, "top_k": 1, "num_return_sequences": 2}
    kwargs = generate_kwargs(subject.model, None, specs)
    output = subject.generate(prompts, **kwargs, **settings)
    plain = subject.generate(prompts, **settings)
    assert torch.equal(output.sequences[2:], plain.sequences[2:])
    assert [trace.counts.latent_steps > 0 for trace in traces(kwargs)] == [True, True, False, False]


def test_scores_show_the_forced_token_and_logits_do_not(subject):
    output = subject.generate(**soft_kwargs(subject), output_hidden_states=True)
    assert len(output.logits) == len(output.scores) == len(output.hidden_states) == STEPS
    for logits, scores, token in zip(output.logits, output.scores, new_tokens(output)[1]):
        assert logits.abs().max() < 100
        assert scores[1].argmax() == token
        others = torch.arange(len(scores[1])) != token
        assert torch.equal(scores[1][others], logits[1][others])


def test_hidden_states_are_those_of_the_mixtures(subject):
    soft = subject.generate(**soft_kwargs(subject), output_hidden_states=True)
    plain = subject.generate(output_hidden_states=True)
    prompt, step = 0, 1
    assert torch.equal(soft.hidden_states[prompt][0], plain.hidden_states[prompt][0])
    assert not torch.allclose(soft.hidden_states[step][0], plain.hidden_states[step][0])


def test_repetition_penalty_is_seen_by_the_mixture(subject):
    settings = {"repetition_penalty": 1.8}
    kwargs = soft_kwargs(subject)
    output = subject.generate(**kwargs, **settings)
    assert not torch.equal(output.sequences, subject.generate(**soft_kwargs(subject)).sequences)
    # Padding counts as a repeated token in a batch, so that only the longest prompt compares.
    alone = subject.generate(PROMPTS[:1], **soft_kwargs(subject), **settings)
    assert torch.equal(alone.sequences[0], output.sequences[0])
    for index, step in enumerate(traces(kwargs)[0].steps):
        assert step.token == output.scores[index][0].argmax()


def test_min_new_tokens_forbids_the_end_while_latent(subject):
    free = subject.generate(**soft_kwargs(subject), eos_token_id=subject.eos)
    assert subject.eos in new_tokens(free)[1, :10]
    held = subject.generate(**soft_kwargs(subject), eos_token_id=subject.eos, min_new_tokens=12)
    assert subject.eos not in new_tokens(held)[1, :12]


# transformers 4.57 itself gives other tokens for a padded batch in chunks, also without a spec.
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS] if not VERSION_4 else [PROMPTS[:1]])
def test_prompt_in_chunks(subject, prompts):
    whole = subject.generate(prompts, **soft_kwargs(subject))
    chunks = subject.generate(prompts, **soft_kwargs(subject), prefill_chunk_size=3)
    assert torch.equal(chunks.sequences, whole.sequences)


def test_prompt_as_embeddings(subject):
    # Embeddings do not show think markers: the spec says where thinking begins.
    spec = subject.spec()
    spec["methods"][0]["quirks"] = {"start": "first_token"}
    inputs = batch(PROMPTS)
    embeddings = subject.model.get_input_embeddings()(inputs["input_ids"]).detach()
    output = subject.model.generate(
        inputs_embeds=embeddings, attention_mask=inputs["attention_mask"], max_new_tokens=STEPS,
        do_sample=False, pad_token_id=0, **generate_kwargs(subject.model, None, spec),
    )  # fmt: skip
    for row, prompt in enumerate(PROMPTS):
        assert output[row].tolist() == subject.reference(prompt).tokens


def test_noise_of_embedded_prompts_is_that_of_their_ids(subject):
    recipe = Recipe(gumbel=0.5, seed=9)
    spec = subject.spec(recipe)
    spec["methods"][0]["quirks"] = {"start": "first_token"}
    inputs = batch(PROMPTS)
    embeddings = subject.model.get_input_embeddings()(inputs["input_ids"]).detach()
    output = subject.model.generate(
        inputs_embeds=embeddings, attention_mask=inputs["attention_mask"], max_new_tokens=STEPS,
        do_sample=False, pad_token_id=0, **generate_kwargs(subject.model, None, spec),
    )  # fmt: skip
    # Positions come from the mask where there are no ids.
    assert output[1].tolist() == subject.reference(PROMPTS[1], recipe).tokens


def test_cache_goes_on_into_a_second_call(subject):
    prompt = PROMPTS[0]
    first = subject.generate([prompt], **soft_kwargs(subject), steps=4)
    so_far = first.sequences[0].tolist()
    extra = [51, START, 52]
    kwargs = soft_kwargs(subject)
    name = cache_argument(subject.model.forward)
    second = subject.generate([so_far + extra], **kwargs, steps=6, **{name: getattr(first, name)})
    # What the first call fed stays in the cache. Its last token was not fed yet: it is fed hard.
    before = subject.reference(prompt, steps=4)
    assert before.tokens == so_far[len(prompt) :]
    embed = subject.model.get_input_embeddings()
    fed = torch.cat([before.fed[:, :-1], embed(torch.tensor([[so_far[-1], *extra]]))], dim=1)
    expected = subject.reference(so_far + extra, steps=6, fed=fed.detach())
    assert second.sequences[0, -6:].tolist() == expected.tokens
    hard = subject.reference(so_far + extra, steps=6)
    assert (hard.logits[0] - second.logits[0][0]).abs().max() > 1e-3
    assert (expected.logits[0] - second.logits[0][0]).abs().max() < 1e-4
    assert [step.latent for step in traces(kwargs)[0].steps] == expected.latent


def test_static_cache_is_the_dynamic_one(subject):
    dynamic = subject.generate(**soft_kwargs(subject))
    static = subject.generate(**soft_kwargs(subject), cache_implementation="static")
    assert torch.equal(static.sequences, dynamic.sequences)
    for a, b in zip(static.logits, dynamic.logits):
        assert (a - b).abs().max() < 1e-4


def test_sliding_window_cache(subjects):
    subject = subjects("gemma3")
    for implementation in ("static", "dynamic"):
        output = subject.generate(**soft_kwargs(subject), cache_implementation=implementation)
        for row, prompt in enumerate(PROMPTS):
            assert new_tokens(output)[row].tolist() == subject.reference(prompt).tokens


def test_generation_config_object(subject):
    config = transformers.GenerationConfig(
        max_new_tokens=STEPS, do_sample=False, pad_token_id=0, eos_token_id=subject.eos
    )
    kwargs = soft_kwargs(subject)
    output = subject.model.generate(**batch(PROMPTS), generation_config=config, **kwargs)
    row = output[1, len(PROMPTS[0]) :].tolist()
    assert up_to(row, subject.eos) == subject.reference(PROMPTS[1], eos=subject.eos).tokens
    assert not traces(kwargs)[1].steps[-1].latent


def test_one_new_token(subject):
    output = subject.generate(**soft_kwargs(subject), steps=1)
    assert new_tokens(output)[:, 0].tolist() == [subject.reference(p).tokens[0] for p in PROMPTS]


def test_one_spec_for_each_row_of_any_batch_size(subject):
    kwargs = soft_kwargs(subject)
    for prompts in (PROMPTS, PROMPTS[:1], PROMPTS[1:]):
        output = subject.generate(prompts, **kwargs)
        assert len(traces(kwargs)) == len(prompts) == len(output.sequences)
