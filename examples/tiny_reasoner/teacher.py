"""The teacher: a backtracking search that writes down what it tries.

Scope: traces as text. It knows nothing of tokens or of models. The search follows a promising
operation only some of the time, so the first token of a step is a real choice, while the rest of a
step (arithmetic, copying) is forced.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from tokenlens.evaluation.countdown import Operation, Problem, operations, reachable, split_of

#: How often the search follows an operation from which the target can still be reached: with two
#: numbers left one can see that at a glance, with more one has to guess.
PROMISING = {2: 0.9, 3: 0.45, 4: 0.4}
ALONE_PROMISING = 0.5
#: How often the search leaves a state after a miss although untried operations remain.
GIVE_UP = 0.3
#: A trace with more backtracks than this is thrown away and searched again.
MAX_WAITS = 8


@dataclass
class Trace:
    """Steps of one search (in order), the equations that solved it, and the states it visited."""

    problem: Problem
    steps: list[str] = field(default_factory=list)
    answer: list[str] = field(default_factory=list)
    states: list[tuple[int, ...]] = field(default_factory=list)
    waits: int = 0

    @property
    def thinking(self) -> str:
        return "\n\n".join(self.steps)


class _TooLongError(Exception):
    pass


def _text(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))


def _next_operation(
    untried: list[Operation], chance: float, target: int, rng: random.Random
) -> Operation:
    promising = [op for op in untried if target in reachable(op.remaining)]
    if promising and rng.random() < chance:
        return rng.choice(promising)
    return rng.choice(untried)


def _search(trace: Trace, numbers: tuple[int, ...], rng: random.Random) -> bool:
    target = trace.problem.target
    trace.states.append(numbers)
    # No training trace may pass through a held-out problem.
    untried = [op for op in operations(numbers) if split_of(op.remaining, target) == "train"]
    # A two-number problem is there to teach when to go back: there the search misses more often.
    alone = len(trace.problem.numbers) == 2
    chance = ALONE_PROMISING if alone else PROMISING[len(numbers)]
    first = True
    while untried:
        if not first:
            if len(numbers) == 2 and target not in reachable(numbers):
                return False
            if len(numbers) > 2 and len(numbers) < len(trace.problem.numbers):
                hopeless = target not in reachable(numbers)
                if rng.random() < (GIVE_UP * 1.5 if hopeless else GIVE_UP / 3):
                    return False
            trace.waits += 1
            if trace.waits > MAX_WAITS:
                raise _TooLongError
            trace.steps.append(f"wait|{_text(numbers)}")
        first = False
        operation = _next_operation(untried, chance, target, rng)
        untried.remove(operation)
        if len(operation.remaining) == 1:
            # The target is written beside the last result: comparing neighbours is learned sooner
            # than comparing with the prompt.
            trace.steps.append(f"{operation}?{target}")
            solved = operation.result == target
        else:
            trace.steps.append(f"{operation}|{_text(operation.remaining)}")
            solved = _search(trace, operation.remaining, rng)
        if solved:
            trace.answer.insert(0, str(operation))
            return True
    return False


def search(problem: Problem, rng: random.Random, attempts: int = 20) -> Trace | None:
    """Return a trace that solves ``problem``, or None if ``attempts`` searches were too long."""
    for _ in range(attempts):
        trace = Trace(problem)
        try:
            if _search(trace, problem.numbers, rng):
                return trace
        except _TooLongError:
            continue
    return None


def traces(seed: int, pools: dict[int, list[Problem]], mix: dict[int, float]) -> Iterator[Trace]:
    """Yield traces for ever: sizes drawn by ``mix``, problems from ``pools``, numbers shuffled.

    ``mix`` is read again for every trace, so that a curriculum can change it on the way.
    """
    rng = random.Random(seed)
    while True:
        count = rng.choices(list(mix), list(mix.values()))[0]
        problem = rng.choice(pools[count])
        numbers = list(problem.numbers)
        rng.shuffle(numbers)
        trace = search(Problem(tuple(numbers), problem.target), rng)
        if trace is not None:
            yield trace
