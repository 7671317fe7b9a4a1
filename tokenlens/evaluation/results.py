"""Figures of an evaluation: a row an arm, and each spec beside its controls."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from tokenlens.evaluation.cost import EqualCost, at_equal_cost
from tokenlens.evaluation.records import Record
from tokenlens.evaluation.run import Results
from tokenlens.evaluation.statistics import (
    Comparison,
    Estimate,
    compare,
    holm,
    interval,
    pass_at_k,
)
from tokenlens.trace.finish import Finish


class Row(NamedTuple):
    """One arm. ``latent_share`` is of all tokens; ``seconds`` is wall time and not reproducible.

    ``never_opened``, ``never_ended``, ``cut``: shares of the answers whose thinking went so, the
    last by a budget or Cold Stop.
    """

    arm: str
    is_control: bool
    accuracy: Estimate
    pass_at: dict[int, float]
    tokens: Estimate
    thinking_tokens: float
    latent_share: float
    unfinished: float
    never_opened: float
    never_ended: float
    cut: float
    seconds: float


class Against(NamedTuple):
    """A spec beside one of its controls; ``p_holm`` allows for all comparisons of the run.

    ``accuracy`` and ``tokens`` are at equal settings, ``at_cost`` is at equal token cost.
    """

    arm: str
    control: str
    accuracy: Comparison
    p_holm: float
    tokens: Comparison
    at_cost: EqualCost


def rows(results: Results) -> list[Row]:
    """A row for each arm."""
    return [_row(results, arm.name, bool(arm.controls)) for arm in results.arms]


def comparisons(results: Results) -> list[Against]:
    """Each spec beside each of its controls, paired by question."""
    pairs = [(of, arm.name) for arm in results.arms for of in arm.controls]
    order = [arm.name for arm in results.arms]
    pairs.sort(key=lambda pair: order.index(pair[0]))
    found = []
    for arm, control in pairs:
        left, right = results.records(arm), results.records(control)
        found.append(
            (
                compare(by_question(left), by_question(right)),
                compare(by_question(left, "tokens"), by_question(right, "tokens")),
                at_equal_cost(left, right),
            )
        )
    adjusted = holm([accuracy.p for accuracy, _, _ in found])
    return [
        Against(arm, control, accuracy, p, tokens, at_cost)
        for (arm, control), (accuracy, tokens, at_cost), p in zip(pairs, found, adjusted)
    ]


def by_question(records: Sequence[Record], field: str = "correct") -> list[float]:
    """Mean of a field over the samples of each question, in the order of the questions' names.

    So two arms' values are paired, and no figure depends on the order that questions were asked in.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for record in records:
        values[record.question].append(float(getattr(record, field)))
    return [sum(one) / len(one) for _, one in sorted(values.items())]


def _row(results: Results, arm: str, is_control: bool) -> Row:
    records = results.records(arm)
    right: dict[str, list[bool]] = defaultdict(list)
    for record in records:
        right[record.question].append(record.correct)
    samples = min((len(one) for one in right.values()), default=1)
    tokens = sum(record.tokens for record in records)
    return Row(
        arm=arm,
        is_control=is_control,
        accuracy=interval(by_question(records)),
        pass_at={
            k: sum(pass_at_k(len(one), sum(one), k) for one in right.values()) / len(right)
            for k in _ks(samples)
        },
        tokens=interval(by_question(records, "tokens")),
        thinking_tokens=sum(r.thinking_tokens for r in records) / max(1, len(records)),
        latent_share=sum(r.latent_steps for r in records) / max(1, tokens),
        unfinished=sum(not r.finished for r in records) / max(1, len(records)),
        never_opened=_finished(records, "never_opened"),
        never_ended=_finished(records, "never_ended"),
        cut=_finished(records, "budget", "cold_stop"),
        seconds=results.seconds(arm),
    )


def _finished(records: Sequence[Record], *finishes: Finish) -> float:
    """Share of the answers whose thinking went so."""
    return sum(record.finish in finishes for record in records) / max(1, len(records))


def _ks(samples: int) -> list[int]:
    """1, 2, 4, ... and the number of samples."""
    powers = [1 << i for i in range(samples.bit_length())]
    return sorted({k for k in powers if k <= samples} | {samples})
