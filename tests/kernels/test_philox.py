"""The counter-based noise: known answers, distributions, and independence of the batch."""

from __future__ import annotations

import pytest
import torch
from tokenlens_kernels import philox


def test_known_answers_of_the_paper() -> None:
    def run(word: int, seed: int) -> list[int]:
        counter = torch.tensor(word)
        outputs = philox.philox_4x32((counter,) * 4, torch.tensor(seed))
        return [int(output) for output in outputs]

    assert run(0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert run(0xFFFFFFFF, -1) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_known_answer_of_mixed_words() -> None:
    counter = tuple(torch.tensor(w) for w in (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344))
    seed = torch.tensor(0x299F31D0A4093822)
    outputs = [int(output) for output in philox.philox_4x32(counter, seed)]
    assert outputs == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_words_put_the_offset_into_the_first_two_counter_words() -> None:
    offset = torch.tensor((0x1234567 << 32) | 0x89ABCDE)
    zero = torch.tensor(0)
    expected = philox.philox_4x32(
        (torch.tensor(0x89ABCDE), torch.tensor(0x1234567), zero, zero), torch.tensor(99)
    )
    assert torch.stack(philox.words(99, offset)).equal(torch.stack(expected))


def test_offsets_of_distinct_draws_are_distinct() -> None:
    positions = torch.tensor([0, 1, philox.MAX_POSITION - 1]).view(-1, 1, 1)
    indices = torch.tensor([0, 1, philox.MAX_INDEX - 1]).view(1, -1, 1)
    streams = torch.tensor([0, 1, philox.MAX_STREAM - 1])
    offsets = philox.offset(positions, indices, streams)
    assert offsets.unique().numel() == 27
    assert (offsets >= 0).all()
    assert philox.offset(positions, indices, 1).equal(offsets[..., 1:2])
    assert int(philox.offset(3, 5, 2)) == (3 << 32) | (2 << 24) | 5


def test_streams_do_not_overlap() -> None:
    tries = range(philox.GAMMA_FIRST_TRY, philox.GAMMA_FIRST_TRY + philox.GAMMA_TRIES)
    single = [
        philox.GUMBEL,
        philox.GATE,
        philox.NORMAL,
        philox.SAMPLE,
        philox.SAMPLE_SEED,
        philox.GAMMA_BOOST,
    ]
    streams = [*single, *tries]
    assert len(set(streams)) == len(streams)
    assert max(streams) < philox.MAX_STREAM


def test_uniform_folds_the_word_like_triton() -> None:
    ends = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**32 - 1])
    expected = torch.tensor([0, 1, 2**31 - 1, 2**31 - 1, 0]).float() * 4.6566127342e-10
    assert philox._to_uniform(ends).equal(expected)
    assert philox._to_uniform(ends).max() < 1


def test_draws_do_not_depend_on_their_batch() -> None:
    seeds = torch.tensor([1, -5, 2**62]).view(-1, 1)
    offsets = philox.offset(torch.tensor([0, 9, 2**30]).view(-1, 1), torch.arange(37))
    for draw in (philox.uniform, philox.gumbel, philox.normal):
        batch = draw(seeds, offsets)
        for row in range(3):
            for column in (0, 17, 36):
                assert draw(seeds[row, 0], offsets[row, column]).equal(batch[row, column])


def _distance(sorted_cdf: torch.Tensor) -> float:
    """Kolmogorov and Smirnov's distance between a sample and its distribution."""
    n = sorted_cdf.numel()
    steps = torch.arange(n, dtype=torch.float64)
    return float(torch.maximum(sorted_cdf - steps / n, (steps + 1) / n - sorted_cdf).max())


COUNT = 100_000
# The distance that a right sampler exceeds once in a million seeds.
LIMIT = 2.7 / COUNT**0.5


def test_uniform_gumbel_and_normal_have_their_distributions() -> None:
    offsets = philox.offset(7, torch.arange(COUNT))
    uniform = philox.uniform(3, offsets).double().sort().values
    assert _distance(uniform) < LIMIT
    gumbel = philox.gumbel(3, offsets).double().sort().values
    assert _distance((-(-gumbel).exp()).exp()) < LIMIT
    normal = philox.normal(3, philox.offset(7, torch.arange(COUNT), philox.NORMAL)).double()
    assert _distance(torch.special.ndtr(normal.sort().values)) < LIMIT


def test_gumbel_is_finite_at_both_ends() -> None:
    ends = philox._open_uniform(torch.tensor([0, 2**31 - 1, 2**31, 2**32 - 1]))
    noise = -torch.log(-torch.log(ends))
    assert noise.isfinite().all()
    assert noise.min() > -3.2
    assert noise.max() < 16.7


@pytest.mark.parametrize("concentration", [0.02, 0.3, 0.999, 1.0, 2.5, 40.0, 1e4])
def test_gamma_has_its_distribution(concentration: float) -> None:
    a = torch.full((COUNT,), concentration)
    draws = philox.gamma(a, 11, 5, torch.arange(COUNT)).double().exp().sort().values
    cdf = torch.special.gammainc(a.double(), draws)
    assert _distance(cdf) < LIMIT


def test_gamma_of_a_tiny_concentration_is_a_power_of_a_uniform() -> None:
    a = 1e-7
    draws = philox.gamma(torch.full((COUNT,), a), 11, 5, torch.arange(COUNT)).double()
    assert draws.isfinite().all()
    assert _distance((draws.sort().values * a).exp()) < LIMIT


def test_gamma_of_a_large_concentration_is_normal() -> None:
    a = 1e8
    draws = philox.gamma(torch.full((COUNT,), a), 11, 5, torch.arange(COUNT)).double()
    # float32 resolves the logarithm to 1e-6, a hundredth of its standard deviation.
    assert draws.mean().sub(torch.log(torch.tensor(a, dtype=torch.float64))).abs() < 2e-6
    assert draws.std().sub(a**-0.5).abs() < 0.02 * a**-0.5


def test_gamma_of_zero_has_no_mass() -> None:
    draws = philox.gamma(torch.tensor([0.0, 1.0, 0.0]), 1, 2, torch.arange(3))
    assert draws[0] == -torch.inf
    assert draws[2] == -torch.inf
    assert draws[1].isfinite()


def test_gamma_does_not_depend_on_its_batch() -> None:
    a = torch.rand(3, 20) * 2
    seeds, positions = torch.arange(3).view(-1, 1), torch.tensor([5, 6, 9]).view(-1, 1)
    batch = philox.gamma(a, seeds, positions, torch.arange(20))
    for row in range(3):
        alone = philox.gamma(
            a[row : row + 1], seeds[row : row + 1], positions[row : row + 1], torch.arange(20)
        )
        assert alone.equal(batch[row : row + 1])


def test_sample_seed_keeps_the_first_and_parts_the_rest() -> None:
    seeds = torch.tensor([0, 1, -7, 2**63 - 1]).view(-1, 1)
    derived = philox.sample_seed(seeds, torch.arange(1000))
    assert derived.dtype == torch.int64
    assert derived[:, :1].equal(seeds)
    assert derived.unique().numel() == 4000


def test_sample_seeds_are_known() -> None:
    # Seeds are part of what makes a run repeatable: a change here changes users' results.
    assert int(philox.sample_seed(6, 1)) == -338238624325889879
