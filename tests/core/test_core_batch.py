"""What a request does depends on its history, its spec and its seed, and on nothing else."""

import pytest
import torch
from built_in import Core, bind
from core_schedules import row_keyed_signals
from core_solo import MARKERS, START, Solo
from tokenlens_kernels import philox, signals_topk

from tokenlens import DecodingSpec
from tokenlens.spec import DirichletNoise, GumbelNoise, RandomRoute, SoftThinking

VOCAB = 300  # more than one tile
STEPS = 5
NOISES = {
    "gumbel": (GumbelNoise(),),
    "dirichlet": (DirichletNoise(),),
    "gumbel, routed": (GumbelNoise(temperature=2.0), RandomRoute()),
    "none": (),
}


def logits_of(step, request):
    """The same for a request wherever it stands."""
    generator = torch.Generator().manual_seed(1000 * step + request)
    return torch.randn(VOCAB, generator=generator)


def request_of(noise, seed, sample=0):
    spec = DecodingSpec(methods=(SoftThinking(), *noise), seed=seed, phase=MARKERS)
    request = bind(spec, tokenizer=None, vocab_size=VOCAB, eos_ids=(2,))
    return request.sample(sample) if sample else request


def life(core, noises, slots, watched, order):
    """Feed plans and edited logits of one request over some steps of a batch."""
    for request, (noise, slot) in enumerate(zip(noises, slots, strict=True)):
        core.add(slot, request_of(noise, seed=request), [START] * (request + 1))
    records = []
    for step in range(STEPS):
        rows = order(list(range(len(slots))), step)
        index = torch.tensor([slots[request] for request in rows])
        logits = torch.stack([logits_of(step, request) for request in rows])
        edited = core.step(logits, index)
        # A token that does not end anything.
        sampled = edited[:, 20:].argmax(1) + 20
        forced = edited.amax(1) > 1e5
        core.commit(torch.where(forced, edited.argmax(1), sampled), index)
        feed, slot = core.next_input, slots[watched]
        row = rows.index(watched)
        records.append(record(feed, slot, edited[row]))
    return records


def record(feed, slot, edited):
    """A copy of everything that a step decided for a slot."""
    parts = (feed.latent[slot], feed.weights[slot], feed.ids[slot], edited)
    return torch.cat([part.flatten().double() for part in parts])


def rotate(rows, step):
    return rows[step % len(rows) :] + rows[: step % len(rows)]


def alone_and_in_a_batch(noise, signals=signals_topk, size=7, watched=3):
    noises = [list(NOISES.values())[i % 3] for i in range(size)]
    noises[watched] = noise
    single = Core(max_slots=1, vocab_size=VOCAB, signals=signals)
    # The watched request alone: it keeps its number, so its seed, prompt and logits.
    single.add(0, request_of(noise, seed=watched), [START] * (watched + 1))
    alone = []
    for step in range(STEPS):
        edited = single.step(logits_of(step, watched)[None], torch.tensor([0]))
        sampled = edited[:, 20:].argmax(1) + 20
        forced = edited.amax(1) > 1e5
        single.commit(torch.where(forced, edited.argmax(1), sampled), torch.tensor([0]))
        alone.append(record(single.next_input, 0, edited[0]))
    core = Core(max_slots=size + 4, vocab_size=VOCAB, signals=signals)
    slots = [(3 * i + 1) % (size + 4) for i in range(size)]
    return alone, life(core, noises, slots, watched, rotate)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("size", [4, 7, 33])
def test_a_request_alone_equals_the_request_in_a_batch(noise, size):
    alone, batched = alone_and_in_a_batch(NOISES[noise], size=size)
    assert all(torch.equal(a, b) for a, b in zip(alone, batched, strict=True))


def test_noise_of_the_row_would_be_seen():
    alone, batched = alone_and_in_a_batch(NOISES["gumbel"], row_keyed_signals)
    assert not all(torch.equal(a, b) for a, b in zip(alone, batched, strict=True))


GUMBEL = NOISES["gumbel"]


def fed(seed=0, noise=GUMBEL, sample=0, prompt=(START,)):
    solo = Solo(SoftThinking(), *noise, vocab=VOCAB, prompt=prompt, seed=seed, sample=sample)
    solo.run(logits_of(0, 0))
    return solo.core.next_input.weights[0].clone()


@pytest.mark.parametrize("noise", [GumbelNoise(), DirichletNoise()], ids=lambda n: n.method)
def test_seeds_differ(noise):
    assert not torch.equal(fed(1, (noise,)), fed(2, (noise,)))
    assert torch.equal(fed(1, (noise,)), fed(1, (noise,)))


@pytest.mark.parametrize("noise", [GumbelNoise(), DirichletNoise()], ids=lambda n: n.method)
def test_positions_differ(noise):
    assert not torch.equal(fed(1, (noise,)), fed(1, (noise,), prompt=(7, START)))


def test_without_noise_the_seed_changes_nothing():
    assert torch.equal(fed(1, ()), fed(2, ()))


def test_the_samples_of_a_prompt_differ_and_the_first_keeps_its_seed():
    weights = [fed(5, sample=index) for index in range(6)]
    assert torch.equal(weights[0], fed(5))
    assert len({tuple(w.tolist()) for w in weights}) == 6
    request = request_of(NOISES["gumbel"], seed=5)
    assert request.sample(0).columns == request.columns


def test_a_samples_seed_is_philox_of_the_requests():
    assert torch.equal(fed(5, sample=3), fed_with_column(int(philox.sample_seed(5, 3))))


def fed_with_column(seed):
    from tokenlens.core.columns import SEED

    solo = Solo(SoftThinking(), GumbelNoise(), vocab=VOCAB)
    solo.core.table.ints[0, solo.core.table.columns[SEED].start] = seed
    solo.run(logits_of(0, 0))
    return solo.core.next_input.weights[0].clone()


def test_rows_that_asked_for_nothing_are_untouched():
    core = Core(max_slots=3, vocab_size=VOCAB)
    core.add(0, request_of(NOISES["gumbel"], seed=0), [START])
    plain = bind(DecodingSpec(phase=MARKERS), tokenizer=None, vocab_size=VOCAB)
    core.add(1, plain, [START])
    logits = torch.stack([logits_of(0, request) for request in range(3)])
    edited = core.step(logits, torch.tensor([1, 0, core.table.null_slot]))
    assert torch.equal(edited[[0, 2]], logits[[0, 2]])
    assert not torch.equal(edited[1], logits[1])


def test_an_idle_core_returns_the_very_same_tensor():
    core = Core(max_slots=1, vocab_size=VOCAB)
    plain = bind(DecodingSpec(phase=MARKERS), tokenizer=None, vocab_size=VOCAB)
    core.add(0, plain, [START])
    logits = logits_of(0, 0)[None]
    assert core.step(logits, torch.tensor([0])) is logits
    assert core.commit(torch.tensor([1]), torch.tensor([0])) is None
