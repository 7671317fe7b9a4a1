"""The ellipsis prompt of AutoThink: the thinking begins with three dots (arXiv 2505.10832).

The part that needs no training: the model then closes the thinking at once, or thinks. Without the
trained checkpoints it may cost accuracy. The trace's note says which of both it was.
"""

from typing import Literal

from pydantic import Field

from tokenlens.controllers.flow import plain
from tokenlens.controllers.page import Page
from tokenlens.controllers.settings import PolicyBase


class Ellipsis(PolicyBase):
    """A text that the model's thinking begins with."""

    policy: Literal["ellipsis"] = "ellipsis"
    text: str = Field("...\n", min_length=1, max_length=500)
    least: int = Field(8, ge=0, le=100_000, description="tokens of thinking that count as thinking")

    def texts(self) -> dict[str, str]:
        """The text."""
        return {"text": self.text}


class Dots:
    """One request."""

    def __init__(self, config: Ellipsis) -> None:
        self._config = config

    async def run(self, page: Page) -> None:
        """Write the line."""
        frame = page.desk.frame
        if page.is_thinking and frame.think_end is not None:
            prompt = page.prompts["large"]
            end = prompt[-200:] if isinstance(prompt, str) else page.model.decode(prompt[-64:])
            opened = end.rstrip().endswith(frame.think_start)
            text = self._config.text if opened else f"{frame.think_start}\n{self._config.text}"
            page.insert(text, "policy.text")
        start = page.tokens
        await plain(page)
        at = page.answer_at
        thought = (page.tokens if at is None else sum(a.tokens for a in page.atoms[:at])) - start
        page.mark.note = "thought" if thought > self._config.least else "did not think"
