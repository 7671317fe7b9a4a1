"""The Countdown task: the verifier, the splits, the problems."""

from __future__ import annotations

import random

import pytest

from tokenlens.evaluation.countdown import (
    MAX_VALUE,
    Problem,
    check_answer,
    check_splits,
    extract_answer,
    operations,
    problems,
    prompt,
    reachable,
    split_of,
    states_inside,
)

PROBLEM = Problem((3, 5, 7, 2), 24)
RIGHT = "7*3=21,5-2=3,21+3=24"


def test_prompt():
    assert prompt(PROBLEM) == "make 24 using 3,5,7,2"


@pytest.mark.parametrize(
    "answer",
    [
        RIGHT,
        " 7*3=21, 5-2=3, 21+3=24 ",
        f"{RIGHT}<|im_end|>",
        f"<think>\n7*3=21|21,5,2\n\n</think>\n\n{RIGHT}<|im_end|>",
    ],
)
def test_right_answers(answer):
    assert check_answer(PROBLEM, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "24",
        "7*3=21,5-2=3",  # a number is left over
        "7*3=21,5-2=3,21+2=23",  # a number that is gone, the wrong target
        "7*3=22,5-2=3,22+2=24",  # wrong arithmetic
        "7*3=21,5-2=3,21+3=25",
        "7*3=21,5-2=3,21+3=24,24+0=24",
        "7*5=35,35-3=32,32-8=24",  # above MAX_VALUE on the way
        f"<think>\n{RIGHT}",  # never closed: no answer
        f"{RIGHT}</think>",  # nothing after the marker
        "__import__('os').getcwd(),1+1=2,2+2=4",
        "7**3=343,5-2=3,21+3=24",
        "\u0667*3=21,5-2=3,21+3=24",  # a digit that int() would read
    ],
)
def test_wrong_answers(answer):
    assert not check_answer(PROBLEM, answer)


def test_each_number_is_used_once():
    assert not check_answer(Problem((3, 5, 2), 16), "5+3=8,8+8=16")
    assert check_answer(Problem((4, 4), 16), "4*4=16")
    assert not check_answer(Problem((4, 3), 16), "4*4=16")


def test_every_result_stays_in_range():
    # True arithmetic, right numbers, right target; but 25 is above MAX_VALUE, and 0 below 1.
    assert not check_answer(Problem((5, 5, 1), 24), "5*5=25,25-1=24")
    assert not check_answer(Problem((5, 5, 7), 7), "5-5=0,7+0=7")


def test_extract_answer():
    assert extract_answer("<think>\nx</think>\n\n1+1=2<|im_end|>\n") == "1+1=2"
    assert extract_answer("1+1=2") == "1+1=2"
    assert extract_answer("<think>\n1+1=2") == ""


@pytest.mark.parametrize(
    ("numbers", "target", "message"),
    [((3,), 3, "at least 2"), ((3, 0), 3, "got 0"), ((3, 4), 25, "got 25")],
)
def test_bad_problems(numbers, target, message):
    with pytest.raises(ValueError, match=message):
        Problem(numbers, target)


def test_operations_are_true_and_distinct():
    found = operations((3, 5, 3))
    assert len({str(op) for op in found}) == len(found)
    for op in found:
        assert 1 <= op.result <= MAX_VALUE
        assert op.left >= op.right
        assert len(op.remaining) == 2


def test_reachable():
    assert 24 in reachable((3, 5, 7, 2))
    assert reachable((2, 3)) == {5, 1, 6}


def test_problems_are_deterministic_solvable_and_of_their_split():
    for split, count in (("dev", 3), ("dev", 4), ("test", 3), ("test", 4)):
        chosen = problems(split, count, 100)
        assert chosen == problems(split, count, 100)
        assert len({problem.state for problem in chosen}) == 100
        for problem in chosen:
            assert len(problem.numbers) == count
            assert problem.target in reachable(problem.numbers)
            assert split_of(problem.numbers, problem.target) == split


def test_asking_for_too_many_problems_names_the_limit():
    with pytest.raises(ValueError, match="ask for at most"):
        problems("dev", 3, 1_000_000)


def test_held_out_splits_are_disjoint_also_inside():
    dev = problems("dev", 3) + problems("dev", 4)
    test = problems("test", 3) + problems("test", 4)
    check_splits([], dev, test)


def test_check_splits_finds_a_leak():
    dev, test = problems("dev", 3, 5), problems("test", 3, 5)
    with pytest.raises(ValueError, match="training trace passes through dev"):
        check_splits([dev[0].state], dev, test)
    with pytest.raises(ValueError, match="training trace passes through test"):
        check_splits([test[0].state], dev, test)
    with pytest.raises(ValueError, match="dev problem contains test"):
        check_splits([], [*dev, test[0]], test)


def test_states_inside_holds_what_a_search_reaches():
    rng = random.Random(0)
    numbers, target = (3, 5, 7, 2), 24
    inside = states_inside(numbers, target)
    for _ in range(50):
        state = numbers
        while len(state) > 1:
            assert (tuple(sorted(state)), target) in inside
            state = rng.choice(operations(state)).remaining
