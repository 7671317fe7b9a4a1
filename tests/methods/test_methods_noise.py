"""The statistics of the noise, and which steps chance makes latent."""

import pytest
import torch
from built_in import Core, bind

from tokenlens import DecodingSpec
from tokenlens.spec import DirichletNoise, GumbelNoise, PhaseConfig, RandomRoute, SoftThinking

VOCAB = 9
PHASE = PhaseConfig(think_start=(7,), think_end=(8,))
WEIGHTS = torch.tensor([0.503, 0.361, 0.095, 0.041])
DRAWS = 6000
# Five standard errors of a frequency, at the most uncertain frequency.
SLACK = 5 * 0.5 / DRAWS**0.5


def soft(**settings):
    given = {"temperature": 1.0, "top_k": 4, "top_p": 1.0, "max_entries": 4}
    return SoftThinking(**{**given, **settings})


def draws(*methods, num=DRAWS, weights=WEIGHTS, seed=0):
    """Concept tokens of ``num`` requests that differ in their position alone."""
    spec = DecodingSpec(methods=methods, phase=PHASE, seed=seed)
    request = bind(spec, tokenizer=None, vocab_size=VOCAB)
    core = Core(max_slots=num, vocab_size=VOCAB)
    core.add(0, request, [7])
    # Admitting thousands of requests one by one is slow; they differ in a column alone.
    from tokenlens.core.columns import POSITION

    core.table.ints[:num] = core.table.ints[0]
    core.table.floats[:num] = core.table.floats[0]
    core.table.ints[:num, core.table.columns[POSITION].start] = torch.arange(num)
    logits = torch.full((num, VOCAB), -20.0)
    logits[:, : len(weights)] = weights.log()
    slots = torch.arange(num)
    step = core.commit(core.step(logits, slots).argmax(1), slots)
    return step, core


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def frequencies(tokens, size=4):
    return torch.bincount(tokens, minlength=VOCAB)[:size].double() / len(tokens)


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_gumbels_top_entry_is_a_sample_of_the_weights(tau):
    step, _ = draws(soft(), GumbelNoise(temperature=tau))
    found = frequencies(step.token)
    assert cosine(found, WEIGHTS.double()) > 0.99
    assert float((found - WEIGHTS).abs().max()) < SLACK


@pytest.mark.parametrize(("tau", "mean", "almost_alone"), [(0.1, 0.958, 0.74), (0.5, 0.801, 0.142),
                                                            (1.0, 0.653, 0.011)])  # fmt: skip
def test_gumbels_largest_weight(tau, mean, almost_alone):
    step, _ = draws(soft(), GumbelNoise(temperature=tau))
    largest = step.weights[:, 0]
    assert float(largest.mean()) == pytest.approx(mean, abs=SLACK)
    assert float((largest > 0.99).double().mean()) == pytest.approx(almost_alone, abs=SLACK)


def test_without_noise_the_top_entry_is_the_mode():
    step, _ = draws(soft())
    assert frequencies(step.token).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("noise", [GumbelNoise(temperature=2.0), DirichletNoise()])
def test_filtered_ids_never_come_back(noise):
    step, core = draws(soft(top_k=2), noise)
    live = step.weights > 0
    assert set(step.ids[live].tolist()) == {0, 1}
    assert set(step.token.tolist()) == {0, 1}
    assert set(core.next_input.ids[:-1][live].tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("alpha", "mean", "top"),
    [(4.0, 0.625, (0.596, 0.343, 0.045, 0.015)), (1.0, 0.779, (0.52, 0.36, 0.085, 0.036))],
)
def test_dirichlet_statistics(alpha, mean, top):
    step, _ = draws(soft(), DirichletNoise(concentration=alpha))
    assert float(step.weights[:, 0].mean()) == pytest.approx(mean, abs=SLACK)
    assert float((frequencies(step.token) - torch.tensor(top)).abs().max()) < SLACK


def test_the_mean_of_dirichlet_weights_is_the_distribution():
    step, _ = draws(soft(), DirichletNoise(concentration=4.0))
    mean = torch.zeros(VOCAB).index_add_(
        0, step.ids[:, :4].flatten(), step.weights[:, :4].flatten()
    )
    assert float((mean[:4] / DRAWS - WEIGHTS).abs().max()) < SLACK


def test_dirichlets_top_entry_is_not_a_sample_of_the_weights():
    step, _ = draws(soft(), DirichletNoise(concentration=4.0))
    assert float((frequencies(step.token) - WEIGHTS).abs().max()) > SLACK


def test_a_large_concentration_is_little_noise():
    step, _ = draws(soft(), DirichletNoise(concentration=1e6), num=50)
    wanted = WEIGHTS.expand(50, 4)
    torch.testing.assert_close(step.weights[:, :4], wanted, rtol=0, atol=0.01)


@pytest.mark.parametrize("alpha", [1e-6, 1e-3])
def test_a_tiny_concentration_still_gives_weights(alpha):
    step, _ = draws(soft(), DirichletNoise(concentration=alpha), num=200)
    torch.testing.assert_close(step.weights.sum(1), torch.ones(200))
    assert float((frequencies(step.token) - WEIGHTS).abs().max()) < 5 * 0.5 / 200**0.5


def test_the_floor_keeps_entries_out_of_the_draw():
    step, _ = draws(soft(), DirichletNoise(quirks={"probability_floor": 0.1}))
    assert set(step.ids[step.weights > 0].tolist()) == {0, 1}


def test_a_floor_above_everything_leaves_the_largest_entry():
    step, core = draws(soft(), DirichletNoise(quirks={"probability_floor": 0.9}), num=20)
    assert step.latent.all()
    assert torch.equal(core.next_input.weights[:-1, 0], torch.ones(20))
    assert (core.next_input.ids[:-1, 0] == 0).all()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_random_routes_share_of_latent_steps(share):
    step, _ = draws(soft(), RandomRoute(latent_share=share))
    assert float(step.latent.double().mean()) == pytest.approx(share, abs=SLACK)
    assert torch.equal(step.latent, step.forced)


@pytest.mark.parametrize(("share", "latent"), [(0.0, 0), (1.0, DRAWS)])
def test_random_route_with_nothing_or_everything(share, latent):
    step, _ = draws(soft(), RandomRoute(latent_share=share))
    assert int(step.latent.sum()) == latent


def test_random_route_is_a_function_of_the_seed():
    same = [draws(soft(), RandomRoute(), seed=s)[0].latent for s in (3, 3, 4)]
    assert torch.equal(same[0], same[1])
    assert not torch.equal(same[0], same[2])


def test_random_route_does_not_share_its_draws_with_the_noise():
    routed, _ = draws(soft(), GumbelNoise(), RandomRoute())
    plain, _ = draws(soft(), GumbelNoise())
    assert torch.equal(routed.weights, plain.weights)
    latent = frequencies(routed.token[routed.latent])
    # Which steps are latent says nothing about what is drawn there.
    assert float((latent - WEIGHTS).abs().max()) < 1.5 * SLACK
