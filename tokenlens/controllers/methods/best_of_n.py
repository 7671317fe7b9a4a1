"""Best of n by the model's own confidence; the baseline beside self-consistency.

Scores of a whole line: the mean log-probability of its tokens, self-certainty's simplest relative
(arXiv 2502.18581 uses the divergence from the uniform distribution, which needs the vocabulary).
"""

import math
from typing import ClassVar, Literal

from pydantic import Field

from tokenlens.controllers.flow import plain
from tokenlens.controllers.lines import answers_of, elect, several
from tokenlens.controllers.page import Page
from tokenlens.controllers.settings import Needed, PolicyBase


class BestOfN(PolicyBase):
    """n lines; the one whose tokens were the most likely (``mean``), or a vote with these weights.

    ``vote``: each line weighs ``exp(mean log-probability)``, its geometric mean.
    """

    needs_ids: ClassVar[str | None] = "it compares the log-probabilities of all tokens"

    policy: Literal["best_of_n"] = "best_of_n"
    n: int = Field(8, ge=1, le=1024, description="lines")
    choose: Literal["mean", "vote"] = "mean"

    def needed(self) -> Needed:
        """As many forks as lines."""
        return Needed(forks=self.n)


class MostConfident:
    """One request."""

    def __init__(self, config: BestOfN) -> None:
        self._config = config

    async def run(self, page: Page) -> None:
        """Write all lines, and become one of them."""
        page.desk.use("forks", self._config.n)
        lines = [page.branch("line", i) for i in range(self._config.n)]
        values = await several(lines, confidence)
        scores = [-math.inf if value is None else value for value in values]
        if self._config.choose == "vote":
            elect(page, lines, [math.exp(score) for score in scores], "confidence vote")
            return
        # A line without an answer is chosen only where none has one.
        answers = answers_of(page, lines)
        best = max(
            range(len(lines)), key=lambda at: (answers[at] is not None, scores[at], -at)
        )  # fmt: skip
        for line, score in zip(lines, scores):
            line.mark.value = score
        page.adopt(lines[best])
        page.why = "confidence"


async def confidence(line: Page) -> float | None:
    """Write a line to its end; the mean log-probability of what the model wrote, at temperature 1.

    The finished line is scored as a prompt: the same on servers whose values while sampling are
    behind the temperature.
    """
    start = len(line.atoms)
    context = line.context
    await plain(line)
    new = line.atoms[start:]
    ids = [atom.token for atom in new if atom.token is not None]
    if not ids:
        return None
    values = await line.model.backend.log_probs(line.session, context, ids)
    own = [value for value, atom in zip(values, new) if not atom.injected]
    return sum(own) / len(own) if own else None
