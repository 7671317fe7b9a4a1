"""Equal token cost and early stopping, as properties over random answers."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenlens.evaluation import Arm, Generated, Record, cost, evaluate, load_task, report
from tokenlens.evaluation.cost import Curve, at_equal_cost, curve
from tokenlens.evaluation.results import by_question
from tokenlens.evaluation.stopping import Stop, half_width, half_widths
from tokenlens.spec import DecodingSpec

ANSWERS = st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=1, max_size=30)
quick = settings(max_examples=60, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def few_resamples():
    """Properties hold for any number of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "RESAMPLES", 100)
        yield


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


@quick
@given(st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.integers(1, 9), st.booleans()),
                min_size=2, max_size=8), st.randoms(use_true_random=False))  # fmt: skip
def test_the_order_of_the_records_does_not_matter(pairs, rng):
    left = records([(t, r) for t, r, _, _ in pairs], 2 if len(pairs) % 2 == 0 else 1)
    right = records([(t, r) for _, _, t, r in pairs], 2 if len(pairs) % 2 == 0 else 1)
    found = at_equal_cost(left, right)
    mixed = [rng.sample(side, len(side)) for side in (left, right)]
    assert at_equal_cost(*mixed) == found
    assert by_question(mixed[0]) == by_question(left)
    widths = [
        half_widths({"a": one, "b": other}, [("a", "b")], 1)
        for one, other in ((left, right), mixed)
    ]
    assert widths[0] == pytest.approx(widths[1])


def test_records_of_other_questions_are_no_pairs():
    left, right = records([(3, True)] * 4), records([(3, True)] * 5)
    with pytest.raises(ValueError, match="'4' first; allowed: the same questions"):
        at_equal_cost(left, right)
    assert at_equal_cost([], []).accuracy == (0.0, 0.0, 0.0, 1.0)


def thinkers(rng, n, scale, base):
    """Answers whose chance to be right grows with what they spent."""
    tokens = np.ceil(rng.lognormal(4, 0.6, n) * scale).clip(max=400)
    right = rng.random(n) < base + 0.4 * (tokens < 120)
    return list(zip(tokens.astype(int).tolist(), (right & (tokens < 400)).tolist()))


def test_intervals_at_equal_cost_cover_as_often_as_they_say():
    sides = ((1.0, 0.3), (1.5, 0.35))
    rng = np.random.default_rng(5)
    truth = [split(thinkers(rng, 300_000, *side)) for side in sides]
    at = min(one.mean_cost for one in truth)
    wanted = [
        truth[0].accuracy(at) - truth[1].accuracy(at),
        truth[0].area(at) - truth[1].area(at),
    ]
    hits = np.zeros(2)
    for seed in range(150):
        found = at_equal_cost(*(records(thinkers(rng, 120, *side)) for side in sides), seed)
        hits += [one.low <= value <= one.high for one, value in zip(found[1:], wanted)]
    assert (hits >= 0.87 * 150).all(), hits


def test_weights_are_answers_that_were_drawn_several_times():
    tokens, right, counts = [5.0, 2.0, 9.0], [1.0, 0.0, 1.0], np.array([2, 1, 0])
    one = Curve(tokens, right, counts)
    other = Curve(np.repeat(tokens, counts), np.repeat(right, counts))
    assert one.mean_cost == other.mean_cost == 4.0
    assert one.accuracy(3.0) == pytest.approx(other.accuracy(3.0))
    assert one.area(6.0) == pytest.approx(other.area(6.0))
    for wrong in ([1.0], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0], [1.0, math.nan, 1.0]):
        with pytest.raises(ValueError, match="weights"):
            Curve(tokens, right, np.array(wrong))


def stopped_runs(draw, width, batch, runs=300, longest=2500):
    """Means at the first batch whose interval is narrow enough, of many runs at once."""
    values = draw(np.random.default_rng(0), (runs, longest))
    found = []
    for one in values:
        ends = range(batch, longest + 1, batch)
        end = next((n for n in ends if half_width(one[:n]) <= width), longest)
        found.append(one[:end].mean())
    return np.array(found)


@pytest.mark.parametrize(
    ("share", "width", "batch"), [(0.03, 0.03, 16), (0.1, 0.04, 1), (0.5, 0.06, 1), (0.9, 0.05, 16)]
)
def test_the_stopping_rule_covers_as_often_as_it_says(share, width, batch):
    means = stopped_runs(lambda rng, shape: (rng.random(shape) < share).astype(float), width, batch)
    assert np.mean(abs(means - share) <= width + 1e-12) >= 0.925
    spread = share * (1 - share)
    bias = (1 - 2 * share) / spread * (width / 1.96) ** 2
    # Three standard errors of the mean of the runs.
    assert abs(means.mean() - share) <= abs(bias) + 3 * width / 1.96 / math.sqrt(len(means))


@pytest.mark.parametrize(("wins", "losses"), [(0.1, 0.1), (0.2, 0.1), (0.03, 0.01)])
def test_the_stopping_rule_covers_paired_differences(wins, losses):
    def draw(rng, shape):
        chance = rng.random(shape)
        return (chance < wins).astype(float) - (chance > 1 - losses)

    means = stopped_runs(draw, 0.05, 16)
    assert np.mean(abs(means - (wins - losses)) <= 0.05) >= 0.925


def test_with_a_looser_rule_rare_answers_would_not_be_covered(monkeypatch):
    def draw(rng, shape):
        return (rng.random(shape) < 0.03).astype(float)

    monkeypatch.setattr(
        "test_evaluation_cost.half_width",
        lambda values: 1.96 * (values.var() / len(values)) ** 0.5 if len(values) > 19 else math.inf,
    )
    means = stopped_runs(draw, 0.03, 16)
    assert np.mean(abs(means - 0.03) < 0.03) < 0.8


@quick
@given(st.lists(st.integers(0, 1), min_size=20, max_size=200))
def test_equal_values_do_not_end_a_run_by_themselves(values):
    width = half_width(values)
    assert math.isfinite(width)
    assert width >= 3.84 / len(values)
    assert half_width([1.0] * 20) > 0.19
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


def interrupted_after(calls):
    """A progress that ends the run at its so many-th call."""
    seen = []

    def progress(*_):
        seen.append(1)
        if len(seen) == calls:
            raise KeyboardInterrupt

    return progress


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
    # Nothing is ever right: what remains is the rule's own z^2/n.
    n = len(found.records("a"))
    assert n == 50
    assert "points to either side" in found.stopped
    assert "not when one was significant" in report.markdown(found)
    # A second look, and a killed run, end at the same question.
    assert run(tmp_path, until_ci=8.0).records("b") == found.records("b")
    killed = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        run(killed, until_ci=8.0, progress=interrupted_after(7))
    again = run(killed, until_ci=8.0)
    assert again.stopped == found.stopped
    assert [again.records(arm) for arm in "ab"] == [found.records(arm) for arm in "ab"]
    whole = run(tmp_path, until_ci=0.5)
    assert whole.stopped == ""
    assert "not when one was significant" not in report.markdown(whole)


@pytest.mark.parametrize(("budget", "until"), [(0, None), (None, 0.0), (None, 101.0)])
def test_bounds_must_be_bounds(budget, until):
    with pytest.raises(ValueError, match="allowed"):
        Stop(ARMS, budget, until, 1)
