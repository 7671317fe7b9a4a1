"""FETCH: tree search over clusters of equivalent steps ("Don't get lost in the trees").

arXiv 2502.11183. A step is a line; a verifier values a path, an embedder says which steps are the
same. Both are the caller's functions; without them the value is the step's geometric mean
probability, and equal texts are the same.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.controllers.children import first_failure, together
from tokenlens.controllers.desk import reseeded
from tokenlens.controllers.flow import finish, goes_on
from tokenlens.controllers.lines import steady
from tokenlens.controllers.page import Page
from tokenlens.controllers.search_simple import SearchSettings, beam_search, best_first
from tokenlens.controllers.search_tree import (
    Cluster,
    Member,
    TreeSettings,
    average_linkage,
    tree_search,
)
from tokenlens.controllers.settings import PolicyBase, Probability
from tokenlens.controllers.stops import ControllerStop
from tokenlens.errors import BackendError, LimitError, SpecError
from tokenlens.spec.base import LEAST


class Fetch(PolicyBase):
    """Best first, beam, or MCTS.

    ============ ============================== ==============================================
    field        default                        published (the authors' code)
    ============ ============================== ==============================================
    merged value the largest of its members     MCTS: that of the member created first
    to the end   one call a completion          drawn again until enough of them end
    ============ ============================== ==============================================

    The second quirk is not copied: a model that never ends would be asked for ever.
    """

    published: ClassVar[Mapping[str, Any]] = {"first_value": True}

    policy: Literal["fetch"] = "fetch"
    search: Literal["best_first", "beam", "mcts"] = "beam"
    budget: int = Field(5, ge=1, le=256, description="children of an expansion")
    beam: int = Field(5, ge=1, le=256)
    limit: int = Field(50, ge=1, le=10_000, description="expansions, or steps of the beam")
    distance: float = Field(0.15, ge=0, le=2, description="cosine, below which steps are the same")
    step: str = Field("\n", min_length=1, max_length=64)
    step_tokens: int = Field(256, ge=1, le=65_536)
    temperature: float = Field(0.8, ge=LEAST, le=100)
    value: Literal["model", "caller"] = "model"
    same: Literal["text", "caller"] = "text"
    root_budget: int = Field(8, ge=1, le=256)
    node_budget: int = Field(4, ge=1, le=256)
    c: float = Field(0.6, ge=0, le=100)
    alpha: Probability = 0.5
    rollouts: int = Field(2, ge=0, le=64)
    least_time: int = Field(40, ge=1, le=100_000, description="simulations")
    most_time: int = Field(400, ge=1, le=100_000, description="simulations")
    terminals: float = Field(5, ge=0, le=100_000)
    high: Probability = 0.9
    depth: int = Field(5, ge=1, le=1000)
    first_value: bool = False

    def scorers(self) -> tuple[str, ...]:
        """Where the caller is asked."""
        return tuple(
            name for name, by in (("value", self.value), ("embed", self.same)) if by == "caller"
        )

    @property
    def needs_facts(self) -> bool:
        """Whether the model's own probabilities are the value."""
        return self.value == "model"


class Searching:
    """One request, and the world that it searches in."""

    def __init__(self, config: Fetch) -> None:
        self._config = config
        self._written = 0
        self._page: Page | None = None

    async def run(self, page: Page) -> None:
        """Search, and become the best whole line."""
        config = self._config
        self._page = page
        if config.needs_facts and page.model.vocabulary is None:
            allowed = "caller, because a server of text gives no probabilities of a path"
            raise SpecError.of("policy.fetch.value", "model", allowed)
        root = Cluster([Member(state=page)])
        leaves: list[Member] = []
        try:
            if config.search == "mcts":
                await tree_search(self, root, self._tree())
            elif config.search == "beam":
                await beam_search(self, root, self._simple())
            else:
                await best_first(self, root, self._simple(), self._complete)
        except LimitError as error:
            page.mark.note = str(error)
        waiting = [root]
        whole: list[tuple[float, int, Member]] = []
        open_ones: list[tuple[float, int, Member]] = []
        while waiting:
            node = waiting.pop(0)
            waiting += node.children
            for member in node.members:
                entry = (member.value, -len(whole) - len(open_ones), member)
                (whole if member.is_leaf else open_ones).append(entry)
        leaves = [member for _, _, member in sorted(whole, key=lambda e: (-e[0], -e[1]))]
        if leaves:
            page.adopt(leaves[0].state)
            page.why = "search"
            if page.state != "eos":
                await finish(page, "search")
            return
        best = max(open_ones, key=lambda e: (e[0], e[1]))[2]
        if best.state is not page:
            page.adopt(best.state)
        page.mark.note = page.mark.note or "no whole line was found"
        await finish(page, "search")

    def _simple(self) -> SearchSettings:
        config = self._config
        return SearchSettings(config.budget, config.beam, config.limit)

    def _tree(self) -> TreeSettings:
        config = self._config
        return TreeSettings(
            config.root_budget, config.node_budget, config.c, config.alpha, config.rollouts,
            config.least_time, config.most_time, config.terminals, config.high, config.depth,
            config.first_value,
        )  # fmt: skip

    async def _complete(self, node: Cluster) -> Member | None:
        found = await self.write(node.members[:1], full=True)
        return found[0] if found else None

    async def write(self, parents: Sequence[Member], *, full: bool) -> list[Member]:
        """One child of each parent; those that failed are left out."""
        assert self._page is not None
        self._page.desk.use("forks", len(parents))
        first = self._written
        self._written += len(parents)
        calls = [
            lambda parent=parent, name=first + at: self._child(parent, name, full)
            for at, parent in enumerate(parents)
        ]
        found = await together(calls)
        if (failure := first_failure(found)) is not None:
            raise failure
        return [one for one in found if not isinstance(one, BackendError)]

    async def _child(self, parent: Member, name: int, full: bool) -> Member:
        config = self._config
        before: Page = parent.state
        assert self._page is not None
        line = before.branch(name, kind="fork")
        # Seeds hang on the number of the child, which the search decides, not on who is first.
        seed = self._page.desk.seed("fetch", name)
        line.sampling = reseeded(line.sampling, seed, temperature=config.temperature)
        start, values = len(line.atoms), []
        try:
            while goes_on(line):
                stop = ControllerStop() if full else ControllerStop(texts=(config.step,))
                span = await line.write(
                    None if full else config.step_tokens, stop=stop,
                    facts=1 if config.needs_facts else 0,
                )  # fmt: skip
                line.take(span)
                values += span.log_probs()
                if not full and line.state not in ("eos", "full"):
                    break
        finally:
            await line.over()
        is_leaf = line.state in ("eos", "full")
        member = Member((*parent.path, line.text_from(start)), is_leaf, state=line)
        empty = not line.text_from(start).strip() and not is_leaf
        repeats = bool(parent.path) and member.path[-1].strip() == parent.path[-1].strip()
        if empty or repeats:
            # As the authors' do: a repeat of the parent, or nothing, is dropped.
            member.value = -1.0
        elif config.needs_facts:
            member.value = steady(math.exp(sum(values) / len(values))) if values else 0.0
        line.mark.value = member.value
        return member

    async def value(self, member: Member) -> float:
        """Of a path."""
        if self._config.value == "model" or member.value < 0:
            return member.value
        assert self._page is not None
        line: Page = member.state
        score = self._page.desk.notes["scorers"]["value"](line.text)
        member.value = checked(score)
        line.mark.value = member.value
        return member.value

    async def groups(self, members: Sequence[Member]) -> list[int]:
        """Which members stand for the same."""
        assert self._page is not None
        texts = [member.path[-1].strip() for member in members]
        if self._config.same == "caller" and len(texts) > 1:
            rows = self._page.desk.notes["scorers"]["embed"](texts)
            rows = [[float(x) for x in row] for row in rows]
            if len(rows) != len(texts) or not all(math.isfinite(x) for row in rows for x in row):
                allowed = f"{len(texts)} rows of finite numbers, one for each text"
                raise SpecError.of("policy.fetch.scorers.embed", f"{len(rows)} rows", allowed)
            return average_linkage(rows, self._config.distance)
        order: dict[str, int] = {}
        return [order.setdefault(" ".join(text.split()), len(order)) for text in texts]


def checked(score: Any) -> float:
    """A verifier's value from 0 to 1: the mean of what it returned, clipped to [-1, 1] and moved.

    Raises
    ------
    SpecError
        It is neither a finite number nor a list of such.
    """
    values = list(score) if isinstance(score, list | tuple) else [score]
    good = [
        float(one) for one in values
        if isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one)
    ]  # fmt: skip
    if not values or len(good) != len(values):
        allowed = "a finite number, or several of them (one a verifier)"
        raise SpecError.of("policy.fetch.scorers.value", score, allowed)
    mean = sum(good) / len(good)
    return (min(1.0, max(-1.0, mean)) + 1) / 2
