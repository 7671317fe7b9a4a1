"""DEER: leave the thinking where a trial answer is certain (arXiv 2504.15895, section 3).

At a word that opens another thought, the model is made to answer; if the probabilities of that
answer's tokens are high enough, the thinking ends there.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.controllers.desk import reseeded
from tokenlens.controllers.flow import divided, finish
from tokenlens.controllers.page import Page
from tokenlens.controllers.settings import Needed, PolicyBase, Probability, Texts
from tokenlens.controllers.stops import ControllerStop
from tokenlens.routing.settings import Sampling


class Deer(PolicyBase):
    """The exit test is ``confidence > threshold``, or fewer than ``reserve`` tokens left.

    ============== ===================================== ================================
    field          default                               published (the authors' code)
    ============== ===================================== ================================
    probe          greedy                                sampled at temperature 1
    one token      counts itself                         the mean divides by zero: no
                                                         exit; ``min`` is 1
    ============== ===================================== ================================

    The first token of a trial answer is skipped: behind ``\\boxed`` a brace is certain.
    """

    published: ClassVar[Mapping[str, Any]] = {"probe_temperature": 1.0, "one_token": "published"}
    needs_ids: ClassVar[str | None] = "it reads the probabilities of a probe's tokens"

    policy: Literal["deer"] = "deer"
    threshold: Probability = 0.95
    confidence: Literal["mean", "geometric", "min"] = "mean"
    max_probes: int = Field(10, ge=1, le=100_000, description="then nothing is looked at any more")
    probe_text: str = Field("\n**Final Answer**\n\\boxed", min_length=1, max_length=500)
    probe_tokens: int = Field(20, ge=1, le=4096)
    probe_stops: Texts = (" }", "}\n", "}.", "}$", "}\\", "}}")
    probe_temperature: float = Field(0.0, ge=0, le=100)
    words: Texts = ("Wait", "Alternatively")
    reserve: int = Field(50, ge=0, le=1_000_000, description="of the thinking's budget")
    one_token: Literal["itself", "published"] = "itself"

    def needed(self) -> Needed:
        """As many probes as it may make."""
        return Needed(probes=self.max_probes)

    def texts(self) -> dict[str, str]:
        """The probe."""
        return {"probe_text": self.probe_text}


class Exits:
    """One request."""

    def __init__(self, config: Deer) -> None:
        self._config = config

    async def run(self, page: Page) -> None:
        """Write the line."""
        config, why, probes = self._config, "", 0
        stop = ControllerStop(texts=config.words)
        while page.is_thinking and page.tokens_left() > 0:
            is_open = probes < config.max_probes
            span = await page.write(stop=stop if is_open else ControllerStop())
            if span.finish != "stop":
                page.take(span)
                break
            # The word itself is no part of what is probed.
            head, word = divided(page, span, config.words)
            page.take(head)
            if page.tokens_left() <= config.reserve:
                why = "reserve"
                break
            if page.atoms:
                probes += 1
                if await self._is_sure(page):
                    why = "confident"
                    break
            page.take(word)
        await finish(page, why)

    async def _is_sure(self, page: Page) -> bool:
        config = self._config
        how = reseeded(
            Sampling(temperature=config.probe_temperature), page.desk.seed("deer", page.tokens)
        )
        probe = await page.probe(
            config.probe_text, "policy.probe_text", max_tokens=config.probe_tokens, sampling=how,
            stop=ControllerStop(texts=config.probe_stops), facts=1,
        )  # fmt: skip
        if probe is None or not probe.facts:
            return False
        shares = [math.exp(value) for value in probe.log_probs()]
        value = certainty(shares, config.confidence, config.one_token)
        if probe.mark is not None:
            probe.mark.value = value
        return value > config.threshold


def certainty(
    shares: Sequence[float],
    kind: Literal["mean", "geometric", "min"] = "mean",
    one_token: Literal["itself", "published"] = "itself",
) -> float:
    """How sure a trial answer is, from the probabilities of its tokens; the first is skipped.

    >>> round(certainty([0.1, 0.9, 0.99, 0.8, 1.0]), 4)
    0.9225
    """
    rest = shares[1:]
    if not rest:
        if one_token == "itself" and shares:
            return shares[0]
        return 1.0 if kind == "min" else math.nan
    if kind == "min":
        return min(rest)
    if kind == "mean":
        return sum(rest) / len(rest)
    if min(rest) <= 0:
        return 0.0
    return math.exp(sum(math.log(p) for p in rest) / len(rest))
