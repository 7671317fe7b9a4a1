"""Self-consistency: sample several lines and take the most frequent answer (arXiv 2203.11171).

The baseline that every other method here has to beat at equal tokens.
"""

from typing import Literal

from pydantic import Field

from tokenlens.controllers.lines import elect, several, whole
from tokenlens.controllers.page import Page
from tokenlens.controllers.settings import Needed, PolicyBase


class SelfConsistency(PolicyBase):
    """n lines, and a vote; ties go to the answer that came first in the order of the lines.

    Each line has a seed of its own, so a greedy request's lines are all the same.
    """

    policy: Literal["self_consistency"] = "self_consistency"
    n: int = Field(8, ge=1, le=1024, description="lines")

    def needed(self) -> Needed:
        """As many forks as lines."""
        return Needed(forks=self.n)


class Voting:
    """One request."""

    def __init__(self, config: SelfConsistency) -> None:
        self._config = config

    async def run(self, page: Page) -> None:
        """Write all lines, and become one of them."""
        page.desk.use("forks", self._config.n)
        lines = [page.branch("line", i) for i in range(self._config.n)]
        await several(lines, whole)
        elect(page, lines)


def chance(seed: int) -> float:
    """A number in [0, 1) out of a seed of 63 bits."""
    return (seed >> 10) / (1 << 53)
