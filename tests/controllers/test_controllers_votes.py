"""Whole lines and votes: self-consistency and best of n on the tiny reasoner."""

import pytest
from controllers_support import Shuffled, steer
from routing_support import alone, prompts

from tokenlens.controllers import vote
from tokenlens.controllers.votes import equality, number, published_vote, read
from tokenlens.routing import Sampling

WARM = Sampling(temperature=1.0, seed=3)


def test_one_greedy_line_is_what_the_model_writes_alone():
    for found, ids in zip(steer({"policy": {"policy": "self_consistency", "n": 1}}), prompts(4)):
        assert found.ids == alone("small", ids)


def test_what_is_not_chosen_is_thrown_away():
    (found,) = steer({"policy": {"policy": "self_consistency", "n": 4}}, prompts(4)[:1],
                     sampling=WARM)  # fmt: skip
    usage = found.trace.usage["large"]
    lines = [node for node in found.trace.nodes if node.kind == "line" and node.parent is not None]
    assert len(lines) == found.trace.forks == 4
    assert usage.tokens + usage.discarded_tokens == sum(node.tokens for node in found.trace.nodes)
    assert usage.tokens + found.trace.injected_tokens >= found.tokens
    assert sum(node.kept for node in found.trace.nodes) == usage.tokens
    assert usage.discarded_tokens > 0


@pytest.mark.parametrize("policy", ["self_consistency", "best_of_n"])
def test_the_order_in_which_lines_end_changes_nothing(policy):
    spec = {"policy": {"policy": policy, "n": 3}}
    found = [
        [(one.ids, one.trace) for one in steer(spec, prompts(4)[:2], sampling=WARM,
                                               wrap=lambda b, s=seed: Shuffled(b, s))]
        for seed in range(3)
    ]  # fmt: skip
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("answers", "weights", "chosen"),
    [
        (["a", "b", "b"], None, 1),
        (["a", "b"], None, 0),
        ([None, None, "a"], None, 2),
        ([None, None], None, None),
        ([], None, None),
        (["1", "1.0", "2", "2", "2.00"], None, 2),
        (["a", "b"], [0.1, 0.2], 1),
        (["a", "b"], [float("nan"), 0.2], 1),
        (["a", "b"], [float("inf"), 0.2], 1),
    ],
)
def test_votes(answers, weights, chosen):
    assert vote(answers, weights, equality("auto"))[0] == chosen


def test_the_published_vote(vectors):
    for case in vectors["softcotpp_vote"]:
        assert published_vote(case["answers"]) == case["answer"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{1{2}3} and \\boxed{4}", "4"),
        ("\\boxed{4} then \\boxed{5", "4"),
        ("The answer is 42.", "42"),
        ("  7 ", "7"),
        ("", None),
        (None, None),
    ],
)
def test_answers_are_read(text, answer):
    assert read(text) == answer


def test_numbers():
    assert number("1,234.50") == number("1234.5")
    assert number("50%") == number("1/2")
    for text in ("1/0", "1e5", "x", "--1", "1,23", ""):
        assert number(text) is None
