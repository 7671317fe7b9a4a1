"""Equal token cost and early stopping, as properties over random answers."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenlens.evaluation import Arm, Generated, Record, evaluate, load_task
from tokenlens.evaluation.cost import Curve, at_equal_cost, curve
from tokenlens.evaluation.stopping import Stop, half_width
from tokenlens.spec import DecodingSpec

ANSWERS = st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=1, max_size=30)
quick = settings(max_examples=60, deadline=None)


def records(answers, samples=1):
    return [
        Record(
            text="", tokens=tokens, finished=True, correct=right, question=str(i // samples),
            sample=i % samples,
        )
        for i, (tokens, right) in enumerate(answers)
    ]  # fmt: skip


def split(answers):
    return Curve([t for t, _ in answers], [r for _, r in answers])


@quick
@given(ANSWERS, st.integers(0, 60))
def test_cost_and_accuracy_are_those_of_a_run_with_that_limit(answers, limit):
    one = split(answers)
    cost = np.mean([min(tokens, limit) for tokens, _ in answers])
    assert one.cost(limit) == pytest.approx(cost)
    if 0 < cost < one.mean_cost:
        back = one.limit(float(cost))
        assert one.cost(back) == pytest.approx(cost)
        expected = np.mean([right and tokens <= limit for tokens, right in answers])
        assert one.right_within(float(cost)).mean() == pytest.approx(expected)


@quick
@given(ANSWERS, st.floats(0.1, 80))
def test_the_area_is_the_mean_accuracy_over_the_costs(answers, cost):
    one = split(answers)
    area = one.shares_of_area(cost).mean()
    assert 0 <= area <= np.mean([right for _, right in answers]) + 1e-9
    grid = (np.arange(4000) + 0.5) / 4000 * cost
    heights = [one.right_within(c).mean() for c in grid[:: max(1, len(answers) // 4)]]
    assert area == pytest.approx(np.mean(heights), abs=0.02)


@quick
@given(ANSWERS)
def test_a_curve_rises_to_the_arm_s_own_accuracy(answers):
    costs, accuracies = split(answers).points()
    assert (np.diff(costs) >= 0).all()
    assert (np.diff(accuracies) >= 0).all()
    assert costs[-1] == pytest.approx(np.mean([t for t, _ in answers]))
    assert accuracies[-1] == pytest.approx(np.mean([r for _, r in answers]))


@quick
@given(st.lists(st.tuples(st.integers(1, 50), st.booleans(), st.integers(1, 50), st.booleans()),
                min_size=1, max_size=20), st.integers(2, 9))  # fmt: skip
def test_comparisons_are_symmetric_and_free_of_units(pairs, times):
    left = records([(t, r) for t, r, _, _ in pairs])
    right = records([(t, r) for _, _, t, r in pairs])
    found, other = at_equal_cost(left, right), at_equal_cost(right, left)
    assert found.cost == other.cost == min(curve(left).mean_cost, curve(right).mean_cost)
    for one, two in zip(found[1:], other[1:]):
        assert one.difference == pytest.approx(-two.difference)
        assert one.p == two.p
    longer = [records([(times * r.tokens, r.correct) for r in side]) for side in (left, right)]
    scaled = at_equal_cost(*longer)
    assert scaled.cost == pytest.approx(times * found.cost)
    assert scaled.accuracy.difference == pytest.approx(found.accuracy.difference)
    assert scaled.area.difference == pytest.approx(found.area.difference)
    assert at_equal_cost(left, left).area[:3] == (0.0, 0.0, 0.0)


@quick
@given(ANSWERS, st.integers(1, 40))
def test_the_same_answers_with_fewer_tokens_are_never_worse(answers, fewer):
    short = [(max(1, tokens - fewer), right) for tokens, right in answers]
    found = at_equal_cost(records(short), records(answers))
    assert found.accuracy.difference >= 0
    assert found.area.difference >= -1e-12


def test_equal_settings_may_mislead_where_equal_cost_does_not():
    # Right more often, for four times the tokens: with as many as the other needs, it has nothing.
    found = at_equal_cost(
        records([(400, i % 10 < 6) for i in range(100)]),
        records([(100, i % 10 < 5) for i in range(100)]),
    )
    assert found.cost == 100
    assert found.accuracy.difference == pytest.approx(-0.5)


def test_the_stopping_rule_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = sizes = 0
    for _ in range(300):
        share = rng.uniform(0.1, 0.9)
        values = (rng.random(2000) < share).astype(float)
        n = next(n for n in range(20, 2001, 20) if half_width(values[:n]) <= 0.06)
        hits += abs(values[:n].mean() - share) <= 0.06
        sizes += n
    assert hits >= 0.92 * 300
    assert sizes / 300 < 400


@quick
@given(st.lists(st.integers(0, 1), min_size=20, max_size=200))
def test_equal_values_do_not_end_a_run_by_themselves(values):
    width = half_width(values)
    assert math.isfinite(width)
    assert width >= 1.95 / len(values)
    assert half_width([1.0] * 20) > 0.09
    assert half_width(values[:19]) == math.inf


class Chance:
    """An engine that answers by chance, from its arguments alone."""

    name = "hf"

    def generate(self, prompts, specs, sampling, *, max_new_tokens, seed):
        found = []
        for prompt, spec in zip(prompts, specs):
            rng = random.Random(f"{prompt}{spec}")
            found.append(Generated(text="x", tokens=rng.randrange(1, 9), finished=True))
        return found

    def close(self):
        pass


ARMS = [
    Arm(name="a", spec=DecodingSpec()),
    Arm(name="b", spec=DecodingSpec(seed=3), controls=("a",)),
]


def run(folder, **settings):
    task = load_task("countdown", limit=100)
    return evaluate(Chance(), task, ARMS, folder, batch_size=10, **settings)


def test_a_budget_stops_all_arms_at_the_same_questions_and_a_larger_one_goes_on(tmp_path):
    whole = run(tmp_path / "whole", budget_tokens=10**9)
    assert whole.stopped == ""
    assert len(whole.records("a")) == 100
    found = run(tmp_path / "cut", budget_tokens=400)
    spent = sum(one.tokens for arm in "ab" for one in found.records(arm))
    assert 300 < spent <= 430
    assert "of 400 tokens" in found.stopped
    assert [r.question for r in found.records("a")] == [r.question for r in found.records("b")]
    more = run(tmp_path / "cut", budget_tokens=700)
    assert len(more.records("a")) > len(found.records("a"))
    rest = run(tmp_path / "cut", budget_tokens=10**9)
    for arm in "ab":
        assert rest.records(arm) == whole.records(arm)
    # With less again what is there is paid for.
    assert len(run(tmp_path / "cut", budget_tokens=10).records("a")) == 100


def test_questions_of_a_sorted_file_come_in_no_order_of_its(tmp_path):
    found = run(tmp_path, budget_tokens=10**9)
    order = [record.question for record in found.records("a")]
    task = load_task("countdown", limit=100)
    assert sorted(order) == sorted(q.id for q in task.questions)
    # Those with three numbers stand first in the task.
    assert 10 < sum(one.count(",") == 3 for one in order[:25]) < 25


def test_a_run_ends_when_all_is_known_well_enough(tmp_path):
    found = run(tmp_path, until_ci=8.0)
    # Nothing is ever right: what remains is the rule's own 1/n.
    n = len(found.records("a"))
    assert n == 30
    assert "points to either side" in found.stopped
    assert run(tmp_path, until_ci=0.5).stopped == ""


@pytest.mark.parametrize(("budget", "until"), [(0, None), (None, 0.0), (None, 101.0)])
def test_bounds_must_be_bounds(budget, until):
    with pytest.raises(ValueError, match="allowed"):
        Stop(ARMS, budget, until, 1)
