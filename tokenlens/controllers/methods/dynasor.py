"""Dynasor: leave the thinking once several trial answers in a row agree (arXiv 2412.20993).

Every so many tokens the model is asked for its answer; nothing is read but the text.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from tokenlens.controllers.children import end
from tokenlens.controllers.desk import Span, reseeded
from tokenlens.controllers.flow import finish
from tokenlens.controllers.page import Page
from tokenlens.controllers.settings import MaybeTexts, PolicyBase
from tokenlens.controllers.votes import equality, until_brace
from tokenlens.routing.settings import Sampling
from tokenlens.spec.base import SMALLEST

EFFORTS = {"mild": (8, 64), "low": (5, 64), "mid": (3, 64), "high": (2, 64), "crazy": (2, 32)}
"""Window and chunk of the authors' settings: the higher, the sooner it saves."""

PROBE = "... Oh, I suddenly got the answer to the whole problem, **Final Answer**\n\n\\[ \\boxed{"


class Dynasor(PolicyBase):
    """The exit test: the last ``window`` answers are equal, not empty, and none sounds unsure.

    ============== ======================== ==================================================
    field          default                  published (the authors' chat client)
    ============== ======================== ==================================================
    unsure_by      whole words              anywhere: "note" counts as "no"
    lag            a probe sees all text    a probe runs beside the next chunk, on the text
                                            before it
    probe          greedy                   temperature 0.6, top-p 0.95
    rule           ``agree``                ``agree``; their server (``server``) compares
                                            nothing: enough probes, the last one sure
    ============== ======================== ==================================================
    """

    published: ClassVar[Mapping[str, Any]] = {
        "unsure_by": "substring", "lag": True, "probe_temperature": 0.6, "probe_top_p": 0.95,
    }  # fmt: skip

    policy: Literal["dynasor"] = "dynasor"
    effort: Literal["mild", "low", "mid", "high", "crazy"] = "mid"
    window: int = Field(3, ge=1, le=1024, description="answers; of the effort if not given")
    chunk: int = Field(64, ge=1, le=65_536, description="tokens; of the effort if not given")
    probe_text: str = Field(PROBE, min_length=1, max_length=500)
    probe_tokens: int = Field(20, ge=1, le=4096)
    probe_temperature: float = Field(0.0, ge=0, le=100)
    probe_top_p: float = Field(1.0, ge=SMALLEST, le=1)
    unsure: MaybeTexts = ("wait", "hold", "but", "okay", "no", "hmm")
    unsure_by: Literal["word", "substring"] = "word"
    answers: Literal["boxed", "text"] = Field(
        "boxed", description="boxed: up to the brace that the probe leaves open; text: all of it"
    )
    lag: bool = False
    rule: Literal["agree", "server"] = "agree"

    @model_validator(mode="before")
    @classmethod
    def _of_the_effort(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("effort", "mid") in EFFORTS:
            window, chunk = EFFORTS[data.get("effort", "mid")]
            return {"window": window, "chunk": chunk, **data}
        return data

    def texts(self) -> dict[str, str]:
        """The probe."""
        return {"probe_text": self.probe_text}


class Agreement:
    """One request."""

    def __init__(self, config: Dynasor) -> None:
        self._config = config
        self._found: list[tuple[str, bool]] = []

    async def run(self, page: Page) -> None:
        """Write the line."""
        config, why = self._config, ""
        while page.is_thinking and page.tokens_left() > 0:
            beside = None
            if config.lag and page.atoms:
                beside = asyncio.ensure_future(self._probe(page, apart=True))
            try:
                page.take(await page.write(config.chunk))
                if beside is not None:
                    await beside
            finally:
                if beside is not None:
                    await end([beside])
            if not page.is_thinking or page.tokens_left() <= 0:
                break
            if not config.lag:
                await self._probe(page)
            if self._agree(page):
                why = "agreement"
                break
        await finish(page, why)

    async def _probe(self, page: Page, *, apart: bool = False) -> None:
        config = self._config
        how = Sampling(temperature=config.probe_temperature, top_p=config.probe_top_p)
        probe = await page.probe(
            config.probe_text, "policy.probe_text", max_tokens=config.probe_tokens,
            sampling=reseeded(how, page.desk.seed("dynasor", page.tokens)), apart=apart,
        )  # fmt: skip
        # A probe that failed is one without an answer: nothing agrees with it.
        text = "" if probe is None else self._text(page, probe)
        found = trial_answer(text) if config.answers == "boxed" else text.strip()
        self._found.append((found, is_sure(text, config.unsure, config.unsure_by)))
        if probe is not None and probe.mark is not None:
            probe.mark.note = f"answer {found!r}"[:100]

    def _text(self, page: Page, probe: Span) -> str:
        return page.desk.text(probe)

    def _agree(self, page: Page) -> bool:
        config = self._config
        if len(self._found) < config.window:
            return False
        last = self._found[-config.window :]
        if config.rule == "server":
            return last[-1][1]
        same = equality(page.desk.frame.equality)
        first = last[0][0]
        return bool(first) and all(sure and same(first, one) for one, sure in last)


def trial_answer(text: str) -> str:
    """The answer behind an open brace; empty where it is never closed.

    >>> trial_answer("{{1}}} so")
    '{{1}}'
    """
    return until_brace(text) or ""


def is_sure(text: str, unsure: Sequence[str], by: Literal["word", "substring"] = "word") -> bool:
    """Whether no word of doubt is in a trial answer."""
    folded = text.casefold()
    if by == "substring":
        return not any(word in folded for word in unsure)
    return not any(re.search(rf"\b{re.escape(word)}\b", folded) for word in unsure)
