"""Whose noise a row has: its spec's seed, else one of torch's, another for every row."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch
from hf_models import PROMPTS, START, new_tokens

from tokenlens.hf import generate_kwargs, traces
from tokenlens.hf.seeds import torch_seed
from tokenlens.spec.seeds import seed_of_sample

SOFT_GRPO = {"method": "soft_grpo_noise", "temperature": 1.0}


class Run:
    """Stands for a call that is under way."""


SAMPLED = {"do_sample": True, "top_k": 1}
"""generate() gives several samples of a prompt only where it samples."""


def spec_of(subject, noise=SOFT_GRPO, **fields):
    """Soft thinking that never ends by itself and so is noise at every step."""
    soft = {"method": "soft_thinking", "quirks": {"start": "first_token"}, "temperature": 1.0}
    phase = {"think_start": [START], "think_end": [subject.end]}
    trace = {"level": "full", "max_entries": 64}
    return {"methods": [soft, noise], "phase": phase, "trace": trace, **fields}


def noises(found):
    """What tells the noise of two rows apart."""
    return [tuple(step.entries for step in trace.steps) for trace in found]


def assert_same_noise(one, other):
    """Two traces of one noise; a row alone and in a batch differ by rounding."""
    for a, b in zip(one.steps, other.steps, strict=True):
        assert a.token == b.token
        assert dict(a.entries) == pytest.approx(dict(b.entries), abs=1e-4)


def run(subject, prompts, spec, steps=6, **settings):
    """The traces of a call."""
    kwargs = generate_kwargs(subject.model, None, spec)
    output = subject.generate(prompts, **kwargs, steps=steps, **settings)
    return traces(kwargs), output


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True}])
@pytest.mark.parametrize(
    "noise", [SOFT_GRPO, {"method": "gumbel_noise"}, {"method": "dirichlet_noise"}]
)
def test_eight_equal_rows_are_eight_samples(subject, noise, sampling):
    found, _ = run(subject, PROMPTS[:1] * 8, spec_of(subject, noise), **sampling)
    assert len(set(noises(found))) == 8
    assert len({trace.spec.seed for trace in found}) == 8
    assert not any(trace.same_noise for trace in found)
    again, _ = run(subject, PROMPTS[:1] * 8, spec_of(subject, noise), **sampling)
    assert not set(noises(again)) & set(noises(found))


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True}])
def test_torchs_seed_repeats_a_call(subject, sampling):
    spec, calls = spec_of(subject), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        calls.append([noises(run(subject, PROMPTS, spec, **sampling)[0]) for _ in range(2)])
    assert calls[0] == calls[1] != calls[2]
    assert calls[0][0] != calls[0][1]


def test_calls_of_several_threads_are_different_samples(subject):
    # They find torch's generator where it is until one of them has drawn.
    together, seeds = threading.Barrier(4), []

    def call():
        together.wait()
        found, _ = run(subject, PROMPTS[:1], spec_of(subject), do_sample=True)
        seeds.append(found[0].spec.seed)

    for _ in range(3):
        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(seeds)) == 12


def test_seeds_of_calls_under_way_differ_and_later_calls_repeat_them():
    torch.manual_seed(1)
    under_way = [Run(), Run(), Run()]
    with ExitStack() as stack:
        threads = [stack.enter_context(ThreadPoolExecutor(1)) for _ in under_way]

        def asked(thread, call):
            return thread.submit(torch_seed, torch.device("cpu"), True, call).result()

        first, *others = map(asked, threads, under_way)
        # Nor is one the seed of another row of the first.
        rows = {seed_of_sample(first, row) for row in range(8)}
        assert len({*rows, *others}) == 10
        under_way.clear()
        assert asked(threads[1], Run()) == first


def test_a_trace_repeats_its_row(subject):
    found, output = run(
        subject, PROMPTS[:1] * 2, spec_of(subject), num_return_sequences=3, **SAMPLED
    )
    assert len({trace.spec.seed for trace in found}) == 6
    for trace, tokens in zip(found, new_tokens(output)):
        assert trace.sample == 0
        (alone,), one = run(subject, PROMPTS[:1], trace.spec)
        assert_same_noise(alone, trace)
        assert torch.equal(new_tokens(one)[0], tokens)
        assert alone.spec == trace.spec


def test_samples_that_share_an_explicit_seed_are_numbered(subject):
    spec = spec_of(subject, seed=3)
    found, _ = run(subject, PROMPTS[:1], spec, num_return_sequences=4, **SAMPLED)
    assert len(set(noises(found))) == 4
    assert [(trace.spec.seed, trace.sample) for trace in found] == [(3, n) for n in range(4)]
    assert not any(trace.same_noise for trace in found)
    again, _ = run(subject, PROMPTS[:1], spec, num_return_sequences=4, **SAMPLED)
    assert noises(again) == noises(found)
    (alone,), _ = run(subject, PROMPTS[:1], spec)
    assert_same_noise(alone, found[0])


def test_equal_prompts_with_an_equal_seed_are_marked(subject):
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    found, _ = run(subject, prompts, spec_of(subject, seed=3))
    assert [trace.same_noise for trace in found] == [True, False, True]
    assert noises(found)[0] == noises(found)[2]
    plain = {**spec_of(subject, seed=3), "methods": [{"method": "soft_thinking"}]}
    found, _ = run(subject, prompts, plain)
    assert not any(trace.same_noise for trace in found)


def test_rows_beside_draw_what_they_draw_without_us(subject):
    quiet = {"methods": []}
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0}
    torch.manual_seed(5)
    plain = subject.generate(PROMPTS, steps=6, **settings)
    for noisy in (spec_of(subject), spec_of(subject, seed=4)):
        torch.manual_seed(5)
        _, output = run(subject, PROMPTS, [noisy, quiet, quiet], **settings)
        assert torch.equal(new_tokens(output)[1:], new_tokens(plain)[1:])


def test_a_spec_that_draws_nothing_moves_no_generator(subject):
    before = torch.get_rng_state()
    plain = {**spec_of(subject), "methods": [{"method": "soft_thinking"}]}
    found, _ = run(subject, PROMPTS, plain)
    assert torch.equal(before, torch.get_rng_state())
    assert {trace.spec.seed for trace in found} == {None}
