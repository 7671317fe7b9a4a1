"""Conditional entropy of the answer, step by step (arXiv 2508.20395).

As a score it is the paper's oracle study: the right answer is given. As a stop it is a rule of
ours on the model's own trial answer, and no method of the paper.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

from pydantic import Field

from tokenlens.controllers.desk import Span, reseeded
from tokenlens.controllers.flow import Probing
from tokenlens.controllers.page import Page
from tokenlens.controllers.settings import PolicyBase, Texts
from tokenlens.controllers.stops import ControllerStop
from tokenlens.routing.backend import Backend, Context
from tokenlens.routing.settings import Sampling
from tokenlens.routing.signals import TOP


class ConditionalEntropy(PolicyBase):
    """Stops when the trial answer's entropy has not fallen by ``epsilon`` for ``patience`` steps.

    Of a server's 20 largest entries, the least entropy that they allow takes its place; the trace's
    node says which.
    """

    needs_ids: ClassVar[str | None] = "it reads entropies of a probe's tokens"

    policy: Literal["conditional_entropy"] = "conditional_entropy"
    epsilon: float = Field(0.05, ge=0, le=100, description="nats")
    patience: int = Field(2, ge=1, le=1024, description="steps in a row")
    least: int = Field(2, ge=1, le=100_000, description="steps before the first stop")
    step: str = Field("\n\n", min_length=1, max_length=64)
    probe_text: str = Field("\n**Final Answer**\n\\boxed", min_length=1, max_length=500)
    probe_tokens: int = Field(20, ge=1, le=4096)
    probe_stops: Texts = ("}",)

    def texts(self) -> dict[str, str]:
        """The probe."""
        return {"probe_text": self.probe_text}


class Falling(Probing):
    """One request."""

    def __init__(self, config: ConditionalEntropy) -> None:
        self._config = config
        self._values: list[float] = []

    def stop(self, page: Page) -> ControllerStop:
        """A step."""
        return ControllerStop(texts=(self._config.step,))

    async def leave(self, page: Page, span: Span) -> str:
        """Whether the entropy has stopped falling."""
        config = self._config
        probe = await page.probe(
            config.probe_text, "policy.probe_text", max_tokens=config.probe_tokens,
            sampling=reseeded(Sampling(), page.desk.seed("entropy", page.tokens)),
            stop=ControllerStop(texts=config.probe_stops), facts=TOP,
        )  # fmt: skip
        if probe is None or not probe.facts or probe.mark is None:
            return ""
        is_exact = all(fact.entropy is not None for fact in probe.facts)
        probe.mark.note = "entropy" if is_exact else "least entropy"
        value = sum(fact.least_entropy for fact in probe.facts) / len(probe.facts)
        probe.mark.value = value
        self._values.append(value)
        if len(self._values) < config.least:
            return ""
        return "entropy" if has_settled(self._values, config.epsilon, config.patience) else ""


def has_settled(values: Sequence[float], epsilon: float, patience: int) -> bool:
    """Whether each of the last reductions is below a bound."""
    last = reductions(values)[-patience:]
    return len(last) == patience and all(one < epsilon for one in last)


def reductions(values: Sequence[float]) -> list[float]:
    """By how much each step lowers the entropy."""
    return [before - after for before, after in pairwise(values)]


def answer_entropy(logits: Sequence[Sequence[float]]) -> float:
    """Mean entropy, in nats, of the distributions at an answer's positions."""
    total = 0.0
    for row in logits:
        highest = max(row)
        log_sum = highest + math.log(sum(math.exp(value - highest) for value in row))
        log_p = [value - log_sum for value in row]
        total -= sum(math.exp(value) * value for value in log_p if value > -math.inf)
    return total / len(logits)


async def utility(
    backend: Backend, prompt: Context, steps: Sequence[Sequence[int]], answer: Sequence[int],
    *, session: str = "utility",
) -> list[float]:  # fmt: skip
    """The answer's conditional entropy before the first step and after each one.

    Parameters
    ----------
    backend
        One that gives entropies (Hugging Face); of others the mean negative log-probability of the
        answer is returned, which is no entropy.
    steps
        Ids of each step of the chain.
    answer
        Ids of the right answer, with whatever leads to it.
    """
    assert not isinstance(prompt, str)
    found = []
    context = tuple(prompt)
    ask = getattr(backend, "entropies", None)
    for step in ((), *steps):
        context = (*context, *step)
        if ask is not None:
            values = await ask(session, context, answer)
        else:
            values = [-value for value in await backend.log_probs(session, context, answer)]
        found.append(sum(values) / len(values))
    await backend.release(session)
    return found
