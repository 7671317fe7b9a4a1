"""TrimR: a verifier ends the thinking once thoughts agree (arXiv 2505.17155).

Its prompts are not known: the two questions here are ours.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.controllers.children import end
from tokenlens.controllers.flow import finish
from tokenlens.controllers.methods.first_try import question_of, yes
from tokenlens.controllers.page import Page
from tokenlens.controllers.settings import PolicyBase, Texts
from tokenlens.controllers.stops import ControllerStop

HOLDS = "Does the last thought give a final answer to the question? Answer yes or no."
SAME = "Do these two thoughts arrive at the same answer? Answer yes or no."


class TrimR(PolicyBase):
    """Stops after ``agree`` thoughts with the same answer in a row; a different one begins anew.

    The verifier is asked while the next thought is written, whose text is thrown away where the
    verdict is to stop (``published``: kept). Under-thinking: ``many`` thoughts in the first
    ``share`` of the budget, and no agreement. A verdict that says neither yes nor no counts as no.
    """

    published: ClassVar[Mapping[str, Any]] = {"cut": False}
    needs_second: ClassVar[str | None] = "a verifier answers yes or no"

    policy: Literal["trimr"] = "trimr"
    agree: int = Field(2, ge=2, le=64, description="thoughts")
    many: int = Field(20, ge=1, le=100_000, description="thoughts")
    share: float = Field(0.5, ge=0, le=1, description="of the budget of thinking")
    least: int = Field(8, ge=1, le=65_536, description="tokens; shorter thoughts are not asked of")
    words: Texts = ("\n\n",)
    cut: bool = True
    holds_text: str = Field(HOLDS, min_length=1, max_length=1000)
    same_text: str = Field(SAME, min_length=1, max_length=1000)
    ending: str = Field(
        "", max_length=500, description="put in before the end marker: a sentence that insists"
    )

    def texts(self) -> dict[str, str]:
        """The sentence."""
        return {"ending": self.ending}


class Verified:
    """One request."""

    def __init__(self, config: TrimR) -> None:
        self._config = config
        # thoughts with an answer that agree, so far
        self._last: str | None = None
        self._count = 0

    async def run(self, page: Page) -> None:
        """Write the line."""
        config, why, thoughts = self._config, "", 0
        page.outlet.held = True
        waiting: asyncio.Task[bool] | None = None
        before = begun = 0
        try:
            while page.is_thinking and page.tokens_left() > 0:
                span = await page.write(stop=ControllerStop(texts=config.words))
                page.take(span)
                # One thought behind: the verdict on the one before this.
                if waiting is not None and await waiting:
                    why = "agreement"
                    if config.cut:
                        page.cut(before, "behind the agreement")
                    break
                waiting = None
                if span.finish != "stop":
                    break
                thought, before, begun = page.text_from(begun), len(page.atoms), len(page.atoms)
                thoughts += 1
                spent = page.tokens / max(1, page.desk.frame.thinking_tokens)
                if thoughts >= config.many and spent >= config.share:
                    why = "under-thinking"
                    break
                if span.tokens >= config.least:
                    waiting = asyncio.ensure_future(self._agrees(page, thought))
        finally:
            if waiting is not None:
                await end([waiting])
        if why and page.is_thinking and config.ending:
            page.insert(config.ending, "policy.ending")
        page.outlet.held = False
        await finish(page, why)

    async def _agrees(self, page: Page, thought: str) -> bool:
        config = self._config
        question = question_of(page)
        if await yes(page, f"{question}\n\n{thought}\n\n{config.holds_text}") is not True:
            return False
        if self._last is None:
            self._last, self._count = thought, 1
            return False
        asked = f"{question}\n\n{self._last}\n\n{thought}\n\n{config.same_text}"
        same = await yes(page, asked)
        self._last = thought
        self._count = self._count + 1 if same is True else 1
        return self._count >= config.agree
