"""ConciseHint: a hint to be brief, written into the thinking again and again (arXiv 2506.18810).

The longer the text, the longer the stretches between two hints, and the later each one stands in
its stretch.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.controllers.flow import Injecting, finish
from tokenlens.controllers.page import Page
from tokenlens.controllers.settings import PolicyBase

HINT = "-<|im_start|>user\nmake answer concise!<|im_end|>-"


class ConciseHint(PolicyBase):
    """Hints behind the end of a clause: "." or "," before a blank.

    ============= ===================================== =====================================
    field         default                               published (the authors' code)
    ============= ===================================== =====================================
    hint          ids, at the edge of a token behind    text, read anew with what follows it
                  the clause
    phase         never in or behind the end marker     anywhere
    result        without the hints' tokens             without the hints' text wherever it
                                                        stands, an answer's own included
    ============= ===================================== =====================================

    ``published`` reads the text anew each round, so ids left of a hint may change.
    """

    published: ClassVar[Mapping[str, Any]] = {"splice": "text"}

    policy: Literal["concise_hint"] = "concise_hint"
    hint: str = Field(HINT, min_length=1, max_length=1000)
    first: int = Field(128, ge=1, le=65_536, description="tokens of the first stretch")
    growth: float = Field(0.2, ge=0, le=10, description="of the text so far, prompt included")
    longest: int = Field(1024, ge=1, le=1_000_000, description="tokens of a stretch")
    depth: float = Field(0.8, ge=0, le=1, description="of a stretch, at most")
    most: int = Field(10_240, ge=1, le=1_000_000, description="tokens of text, prompt included")
    splice: Literal["ids", "text"] = "ids"

    def texts(self) -> dict[str, str]:
        """The hint."""
        return {"hint": self.hint}


class Hints(Injecting):
    """One request."""

    def __init__(self, config: ConciseHint) -> None:
        self._config = config
        self._interval = config.first
        self._failed = False

    async def run(self, page: Page) -> None:
        """Write the line."""
        if self._config.splice == "ids":
            await super().run(page)
            return
        await self._as_text(page)

    def segment(self, page: Page) -> int:
        """The stretch."""
        return self._interval

    def inject(self, page: Page, start: int) -> None:
        """Put a hint in, if there is a clause's end behind where it may stand."""
        config = self._config
        text = page.text_from(start)
        at = place(text, self._interval, config.depth)
        prompt = page.prompts["large"]
        known = len(prompt) // 4 if isinstance(prompt, str) else len(prompt)
        if at is not None and not self._failed:
            edge = start + atoms_until(page, start, at + 1)
            # No room left for hints: the text goes on without.
            self._failed = not page.insert(config.hint, "policy.hint", at=edge, hidden=True)
        self._interval = interval(known + page.tokens, config)

    async def _as_text(self, page: Page) -> None:
        """The authors' loop: the context is a text."""
        config, words = self._config, page.model.vocabulary
        count = page.desk.notes["scorers"].get("count_tokens")
        if count is None:
            count = (lambda text: len(words.encode(text))) if words else (lambda t: len(t) // 4)
        given = page.prompts["large"]
        prompt = given if isinstance(given, str) else page.model.decode(given)
        whole, first = prompt, prompt
        page.outlet.held = True
        while page.tokens_left() > 0:
            page.prompts = {**page.prompts, "large": page.model.encode(whole)}
            start = len(page.atoms)
            kept, page.atoms = page.atoms, []
            try:
                span = await page.write(self._interval)
            finally:
                page.atoms = kept
            page.take(span)
            text = page.text_from(start)
            at = place(text, self._interval, config.depth)
            if at is None:
                whole += text
            else:
                whole += text[: at + 1] + config.hint + text[at + 1 :]
            if span.finish != "length" or not page.is_thinking:
                break
            page.desk.injected += 0 if at is None else max(1, count(config.hint))
            self._interval = interval(count(whole), config)
            if count(whole) > config.most:
                page.why, page.state = "budget", "full"
                break
        page.prompts = {**page.prompts, "large": page.model.encode(first)}
        page.outlet.held = False
        if page.state != "full":
            await finish(page)


def place(text: str, length: int, depth: float = 0.8, first: int = 128) -> int | None:
    """The character behind which a hint goes, in a stretch of a planned length in tokens."""
    share = min(max(length - first, 0) / 1024, depth)
    for at in range(int(share * (len(text) - 1)) if text else 0, len(text) - 1):
        if text[at] in ".," and text[at + 1] == " ":
            return at
    return None


def interval(tokens: int, config: ConciseHint) -> int:
    """Tokens of the next stretch."""
    return min(config.longest, int(config.first + config.growth * tokens))


def atoms_until(page: Page, start: int, characters: int) -> int:
    """The fewest atoms from a place on whose text has so many characters."""
    low, high = 0, len(page.atoms) - start
    while low < high:
        middle = (low + high) // 2
        if len(page.text_from(start, start + middle)) >= characters:
            high = middle
        else:
            low = middle + 1
    return low
