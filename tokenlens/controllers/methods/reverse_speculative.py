"""Reverse speculative decoding: a large model proposes, a small one must find it likely.

"In Their Own Words", arXiv 2509.22230. Made for traces that a small model can learn from. Each
token is a call of both models: cheap in one process, where each keeps its cache, and two requests a
token over HTTP.
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from tokenlens.controllers.children import together
from tokenlens.controllers.desk import Span, replace, reseeded
from tokenlens.controllers.flow import goes_on
from tokenlens.controllers.methods.self_consistency import chance
from tokenlens.controllers.page import Page
from tokenlens.controllers.settings import PolicyBase, Probability
from tokenlens.controllers.stops import ControllerStop
from tokenlens.errors import BackendError
from tokenlens.routing.settings import Role, Sampling
from tokenlens.spec.base import SMALLEST


class ReverseSpeculative(PolicyBase):
    """Up to ``trials`` draws of the large model's entries; then one of the small model's.

    Draws are of the largest ``top`` entries, renormalised over ids that both vocabularies share,
    after the request's temperature and filters. The authors' generator draws from the values that
    the server returns, so its temperature acts only where these are processed.
    """

    needs_ids: ClassVar[str | None] = "it reads 20 entries of each token"
    needs_second: ClassVar[str | None] = "a small model approves each token"

    needs_shared: ClassVar[str | None] = "each reads the ids that the other one has written"

    reads_warped: ClassVar[bool] = True

    policy: Literal["reverse_speculative"] = "reverse_speculative"
    threshold: Probability = 0.01
    trials: int = Field(5, ge=1, le=64)
    top: int = Field(20, ge=1, le=20)
    temperature: float = Field(0.7, ge=0, le=100)
    top_p: float = Field(0.95, ge=SMALLEST, le=1)


class Approval:
    """One request."""

    def __init__(self, config: ReverseSpeculative) -> None:
        self._config = config
        self._accepted = self._fallback = 0

    async def run(self, page: Page) -> None:
        """Write the line, token by token."""
        config, desk = self._config, page.desk
        small = desk.models["small"]
        shared = len(page.model.vocabulary.pieces) if page.model.vocabulary else 0
        if small.vocabulary is not None:
            shared = min(shared, len(small.vocabulary.pieces))
        marks = {role: page.begin("trial") for role in desk.models}
        watcher = ControllerStop(ends=page.model.ends if page.model.ends.think_end else None).watch(
            page.model.vocabulary
        )
        how = {
            "large": Sampling(temperature=config.temperature, top_p=config.top_p),
            # At temperature 1 every server's values are those of the model alone.
            "small": Sampling(temperature=1.0, top_p=1.0),
        }
        while goes_on(page):
            position = page.tokens

            async def ask(role: Role, position: int = position) -> Span:
                prompt = page.prompts[role]
                assert not isinstance(prompt, str)
                return await desk.call(
                    (*prompt, *page.ids),
                    marks[role],
                    role=role,
                    max_tokens=1,
                    stop=ControllerStop(),
                    session=f"{page.session}.{role}",
                    facts=config.top,
                    warped=role == "large",
                    sampling=reseeded(how[role], desk.seed("rsd", position, role)),
                )

            found = await together([lambda: ask("large"), lambda: ask("small")])
            spans = []
            for one in found:
                if isinstance(one, BackendError):
                    raise one
                spans.append(one)
            tops = [{i: math.exp(v) for i, v in span.facts[0].top if i < shared} for span in spans]
            draws = [chance(desk.seed("rsd", position, i)) for i in range(config.trials + 1)]
            token, fallback = choose(tops[0], tops[1], config.threshold, draws)
            self._fallback += fallback
            self._accepted += not fallback
            end = watcher.push(token)
            mark = marks["small" if fallback else "large"]
            page.take(replace(Span((token,), finish=end), mark=mark))
            atom = page.atoms[-1]
            page.atoms[-1] = replace(atom, writer="small" if fallback else "large")
        for mark in marks.values():
            # How a call ended hangs on the token that the engine drew, which nobody takes.
            mark.end = page.state
        page.mark.note = f"{self._accepted} accepted, {self._fallback} of the small model"


def choose(
    proposer: Mapping[int, float],
    approver: Mapping[int, float],
    threshold: float,
    draws: Sequence[float],
    shared: Sequence[bool] | None = None,
) -> tuple[int, bool]:
    """One token: a proposal that is likely enough, or the approver's own.

    Parameters
    ----------
    proposer, approver
        Probabilities by id.
    draws
        Numbers in [0, 1): one a proposal, and the last one for the approver.
    shared
        Whether both vocabularies have an id; all of them if not given.

    Returns
    -------
    tuple
        The id, and whether the approver wrote it.
    """
    allowed = {i: p for i, p in proposer.items() if shared is None or shared[i]}
    for u in draws[:-1] if allowed else ():
        token = inverse(allowed, u)
        if approver.get(token, 0.0) >= threshold:
            return token, False
    return inverse(approver, draws[-1]), True


def inverse(weights: Mapping[int, float], u: float) -> int:
    """The id whose share of the cumulative weights, in the order of ids, a number falls into."""
    total, passed = sum(weights.values()), 0.0
    ids = sorted(weights)
    for token in ids:
        passed += weights[token]
        if passed > u * total:
            return token
    return ids[-1]
