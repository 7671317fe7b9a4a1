"""Countdown: combine all given numbers with ``+ - *`` until only the target is left.

Scope: problems, their deterministic train / dev / test split, the prompt, and an exact check of an
answer. Pure Python; it knows nothing of models, tokenizers, or how a teacher searches.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, combinations_with_replacement
from typing import Literal

Split = Literal["train", "dev", "test", "unused"]

#: Given numbers lie in this range; every result of an operation in ``1..MAX_VALUE``.
MAX_NUMBER = 12
MAX_VALUE = 24

#: Shares (per cent of the hash) of the held-out splits, and the sizes that can be held out.
DEV_PERCENT = 6
TEST_PERCENT = 12
HELD_OUT_COUNTS = (3, 4)

_EQUATION = re.compile(r"([0-9]{1,4})([-+*])([0-9]{1,4})=([0-9]{1,4})")


@dataclass(frozen=True)
class Problem:
    """One Countdown problem.

    Parameters
    ----------
    numbers : tuple of int
        The numbers in the order the prompt lists them, each in ``1..MAX_VALUE``.
    target : int
        The number to reach, in ``1..MAX_VALUE``.

    Raises
    ------
    ValueError
        If there are fewer than two numbers, or a number or the target is out of range.
    """

    numbers: tuple[int, ...]
    target: int

    def __post_init__(self) -> None:
        if len(self.numbers) < 2:
            raise ValueError(f"got {len(self.numbers)} number(s); give at least 2")
        for value in (*self.numbers, self.target):
            if not 1 <= value <= MAX_VALUE:
                raise ValueError(
                    f"got {value}; numbers and target must lie in 1..{MAX_VALUE}: choose others"
                )

    @property
    def state(self) -> tuple[tuple[int, ...], int]:
        """Sorted numbers and target: what makes two problems the same problem."""
        return tuple(sorted(self.numbers)), self.target


@dataclass(frozen=True)
class Operation:
    """One arithmetic step on two of the numbers, larger operand first."""

    left: int
    sign: str
    right: int
    result: int
    remaining: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.left}{self.sign}{self.right}={self.result}"


def prompt(problem: Problem) -> str:
    """Return the user message that asks for ``problem``, e.g. ``make 24 using 3,5,7,2``."""
    return f"make {problem.target} using {','.join(map(str, problem.numbers))}"


def operations(numbers: tuple[int, ...]) -> list[Operation]:
    """Return every distinct legal operation on two of ``numbers``.

    ``remaining`` of each holds the result first and then the untouched numbers in their order.
    """
    found: dict[str, Operation] = {}
    for i, j in combinations(range(len(numbers)), 2):
        left, right = max(numbers[i], numbers[j]), min(numbers[i], numbers[j])
        rest = tuple(n for k, n in enumerate(numbers) if k not in (i, j))
        for sign, result in (("+", left + right), ("-", left - right), ("*", left * right)):
            if 1 <= result <= MAX_VALUE:
                operation = Operation(left, sign, right, result, (result, *rest))
                found.setdefault(str(operation), operation)
    return list(found.values())


@cache
def _reachable(numbers: tuple[int, ...]) -> frozenset[int]:
    if len(numbers) == 1:
        return frozenset(numbers)
    return frozenset().union(*(reachable(op.remaining) for op in operations(numbers)))


def reachable(numbers: tuple[int, ...]) -> frozenset[int]:
    """Return the targets that ``numbers`` can be combined to."""
    return _reachable(tuple(sorted(numbers)))


@cache
def _split_of_state(numbers: tuple[int, ...], target: int) -> Split:
    if len(numbers) not in HELD_OUT_COUNTS or numbers[-1] > MAX_NUMBER:
        return "train"
    digest = hashlib.sha256(f"countdown-2:{numbers}:{target}".encode()).digest()
    percent = int.from_bytes(digest[:8], "big") % 100
    split: Split = "train"
    if percent < DEV_PERCENT:
        split = "dev"
    elif percent < DEV_PERCENT + TEST_PERCENT:
        split = "test"
    # A held-out problem must not contain a problem of the other held-out split: whoever looks at a
    # model's dev transcripts would otherwise look at test problems.
    if split != "train":
        other = "test" if split == "dev" else "dev"
        if any(s == other for s in _splits_inside(numbers, target)):
            return "unused"
    return split


def _splits_inside(numbers: tuple[int, ...], target: int) -> Iterator[Split]:
    for op in operations(numbers):
        if len(op.remaining) > 2:
            yield split_of(op.remaining, target)


def split_of(numbers: tuple[int, ...], target: int) -> Split:
    """Return the split that a state (numbers in any order, and the target) belongs to.

    ``unused`` marks held-out problems that contain a problem of the other held-out split. States
    with a number above ``MAX_NUMBER``, and with other than 3 or 4 numbers, are never held out.
    """
    return _split_of_state(tuple(sorted(numbers)), target)


@cache
def _pool(split: Split, count: int) -> tuple[tuple[tuple[int, ...], int], ...]:
    return tuple(
        (numbers, target)
        for numbers in combinations_with_replacement(range(1, MAX_NUMBER + 1), count)
        for target in sorted(reachable(numbers))
        if split_of(numbers, target) == split
    )


def problems(split: Split, count: int, size: int | None = None, seed: int = 0) -> list[Problem]:
    """Return ``size`` different solvable problems of a split, in a seeded order.

    Parameters
    ----------
    split : {"train", "dev", "test"}
    count : int
        Numbers a problem has.
    size : int, optional
        How many problems; all of the split when omitted.
    seed : int
        Of the choice and of the order in which the prompt lists the numbers.

    Raises
    ------
    ValueError
        If the split holds fewer than ``size`` problems.
    """
    pool = list(_pool(split, count))
    size = len(pool) if size is None else size
    if size > len(pool):
        raise ValueError(
            f"got size={size}; split {split!r} has {len(pool)} problems with {count} numbers: "
            "ask for at most that many"
        )
    rng = random.Random(f"{split}:{count}:{seed}")
    rng.shuffle(pool)
    chosen = []
    for numbers, target in pool[:size]:
        shuffled = list(numbers)
        rng.shuffle(shuffled)
        chosen.append(Problem(tuple(shuffled), target))
    return chosen


def states_inside(numbers: tuple[int, ...], target: int) -> set[tuple[tuple[int, ...], int]]:
    """Return every (sorted numbers, target) that any search from ``numbers`` can pass through."""
    found: set[tuple[tuple[int, ...], int]] = set()
    open_states = [tuple(sorted(numbers))]
    while open_states:
        state = open_states.pop()
        if (state, target) in found or len(state) < 2:
            continue
        found.add((state, target))
        open_states.extend(tuple(sorted(op.remaining)) for op in operations(state))
    return found


def check_splits(
    train_states: Iterable[tuple[tuple[int, ...], int]],
    dev: Iterable[Problem],
    test: Iterable[Problem],
) -> None:
    """Raise unless dev and test are clean of train and of each other, inner states included.

    Parameters
    ----------
    train_states : iterable of (numbers, target)
        Every state that a training trace passes through, the problem itself included.
    dev, test : iterable of Problem

    Raises
    ------
    ValueError
        Naming a state that is on both sides.
    """
    dev, test = list(dev), list(test)
    dev_states = {problem.state for problem in dev}
    test_states = {problem.state for problem in test}
    seen = {(tuple(sorted(numbers)), target) for numbers, target in train_states}
    dev_inside = set().union(*(states_inside(*state) for state in dev_states))
    test_inside = set().union(*(states_inside(*state) for state in test_states))
    for what, overlap in (
        ("a training trace passes through dev problem", seen & dev_states),
        ("a training trace passes through test problem", seen & test_states),
        ("a dev problem contains test problem", dev_inside & test_states),
        ("a test problem contains dev problem", test_inside & dev_states),
    ):
        if overlap:
            raise ValueError(f"{what} {min(overlap)}: regenerate with split_of() as the filter")


def extract_answer(text: str) -> str:
    """Return what follows the last ``</think>`` (all of it where there is none), end marks removed.

    A text that opens ``<think>`` and never closes it has no answer: the result is empty.
    """
    before, marker, after = text.rpartition("</think>")
    if not marker:
        after = "" if "<think>" in before + after else after
    return after.split("<|im_end|>")[0].replace("<|endoftext|>", "").strip()


def check_answer(problem: Problem, answer_text: str) -> bool:
    """Return whether an answer such as ``7*3=21,5-2=3,21+3=24`` solves the problem.

    Each equation must be true, use two numbers that are still there, and give a result in
    ``1..MAX_VALUE``; together they must use all numbers and end in the target. Nothing of the text
    is ever evaluated as code. A full transcript is accepted too: only what follows the last
    ``</think>`` counts.
    """
    left_over = list(problem.numbers)
    equations = extract_answer(answer_text).split(",")
    if len(equations) != len(problem.numbers) - 1:
        return False
    for equation in equations:
        match = _EQUATION.fullmatch(equation.strip())
        if match is None:
            return False
        left, sign, right, result = int(match[1]), match[2], int(match[3]), int(match[4])
        true_result = {"+": left + right, "-": left - right, "*": left * right}[sign]
        if result != true_result or not 1 <= result <= MAX_VALUE:
            return False
        for operand in (left, right):
            if operand not in left_over:
                return False
            left_over.remove(operand)
        left_over.append(result)
    return left_over == [problem.target]
