"""ICN, in-context navigation: ask again, and show what was found already (arXiv 2410.02284).

The authors' prompts are not known: the text is ours.
"""

from typing import Literal

from pydantic import Field

from tokenlens.controllers.lines import elect, several, whole
from tokenlens.controllers.page import Page
from tokenlens.controllers.settings import Needed, PolicyBase
from tokenlens.controllers.votes import read

TEXT = "Answers that were found already: {found}. Find a different way to the answer.\n"


class InContextNavigation(PolicyBase):
    """``n`` lines, one after the other; each begins with a text that names the answers so far.

    The text stands at the beginning of the thinking, so that the prompt is the same for all.
    """

    policy: Literal["icn"] = "icn"
    n: int = Field(4, ge=1, le=256, description="lines")
    text: str = Field(TEXT, min_length=1, max_length=1000, description="{found}: the answers")
    longest: int = Field(200, ge=1, le=10_000, description="characters of all answers")

    def needed(self) -> Needed:
        """As many forks as lines."""
        return Needed(forks=self.n)


class Navigation:
    """One request."""

    def __init__(self, config: InContextNavigation) -> None:
        self._config = config

    async def run(self, page: Page) -> None:
        """Write one line after the other, and vote."""
        config = self._config
        page.desk.use("forks", config.n)
        lines: list[Page] = []
        found: list[str] = []
        for i in range(config.n):
            line = page.branch("line", i)
            lines.append(line)
            if found:
                shown = ", ".join(found)[: config.longest]
                line.insert(config.text.replace("{found}", shown), "policy.text", hidden=True)
            await several([line], whole)
            answer = read(line.answer, page.desk.frame.read_answer)
            if answer is not None and answer not in found:
                found.append(answer)
        elect(page, lines)
