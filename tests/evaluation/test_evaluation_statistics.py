"""Estimates against values worked out by hand or by counting."""

import itertools
import math

import numpy as np
import pytest

from tokenlens.evaluation.statistics import compare, holm, interval, pass_at_k, wilson


@pytest.mark.parametrize(("samples", "correct", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (4, 4, 4)])
def test_pass_at_k_is_the_share_of_choices_with_a_right_one(samples, correct, k):
    answers = [True] * correct + [False] * (samples - correct)
    choices = list(itertools.combinations(answers, k))
    assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_pass_at_k_is_unbiased():
    rng = np.random.default_rng(0)
    p, n, k = 0.3, 8, 4
    found = [pass_at_k(n, int(c), k) for c in rng.binomial(n, p, 20_000)]
    assert np.mean(found) == pytest.approx(1 - (1 - p) ** k, abs=0.005)


@pytest.mark.parametrize(("samples", "correct", "k"), [(3, 1, 4), (3, 1, 0), (3, 4, 1), (3, -1, 1)])
def test_pass_at_k_refuses_nonsense(samples, correct, k):
    with pytest.raises(ValueError, match="allowed"):
        pass_at_k(samples, correct, k)


def test_wilson():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20.
    assert wilson(81, 263)[1:] == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20)[1:] == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(7, 7).high == 1.0
    assert wilson(0, 0) == (0.0, 0.0, 1.0)


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(100):
        estimate = interval(rng.beta(2, 5, 60).tolist(), seed)
        hits += estimate.low <= 2 / 7 <= estimate.high
    assert 88 <= hits <= 99


def test_binary_differences_get_mcnemar_s_exact_test():
    left, right = [1] * 12 + [0] * 3 + [1] * 20, [0] * 12 + [1] * 3 + [1] * 20
    found = compare(left, right)
    expected = 2 * sum(math.comb(15, i) for i in range(4)) / 2**15
    assert found.p == pytest.approx(expected)
    assert found.difference == pytest.approx(9 / 35)
    assert found.low < 9 / 35 < found.high


def test_signs_are_flipped_in_all_ways():
    left, right = [0.5, 0.25, 1.0, 0.75, 0.0], [0.0, 0.5, 0.25, 0.0, 0.0]
    moved = [0.5, -0.25, 0.75, 0.75]
    sums = [
        abs(sum(s * m for s, m in zip(signs, moved)))
        for signs in itertools.product((1, -1), repeat=4)
    ]
    assert compare(left, right).p == pytest.approx(np.mean([s >= 1.75 for s in sums]))


def test_many_differences_are_sampled_and_never_p_0():
    values = np.linspace(0.1, 0.9, 40)
    assert compare(values.tolist(), (values - 0.1).tolist()).p == pytest.approx(1 / 10_001)
    rng = np.random.default_rng(2)
    assert compare(rng.random(40).tolist(), rng.random(40).tolist()).p > 0.01


def test_equal_arms_do_not_differ():
    assert compare([0.5, 1.0], [0.5, 1.0]) == (0.0, 0.0, 0.0, 1.0)


def test_no_difference_is_found_as_rarely_as_it_should_be():
    rng = np.random.default_rng(3)
    found = [
        compare(rng.integers(0, 2, 50).tolist(), rng.integers(0, 2, 50).tolist()).p < 0.05
        for _ in range(60)
    ]
    assert sum(found) <= 8


def test_unpaired_values_are_refused():
    with pytest.raises(ValueError, match="as many as left, 2"):
        compare([0, 1], [1])


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
