"""LATR: branch where the two likeliest tokens are close, and drop branches that turn out alike.

"Lookahead tree-based rollouts", arXiv 2510.24302, section 3. Made for rollouts of a trainer; every
row is in the result's ``lines`` with its parent, its birth and its log-probability. As a decoding
method the rows vote.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from tokenlens.controllers.branching import BranchRow, Pool
from tokenlens.controllers.flow import plain
from tokenlens.controllers.lines import elect, several
from tokenlens.controllers.page import Atom, Page
from tokenlens.controllers.results import Line
from tokenlens.controllers.settings import Needed, PolicyBase, Probability

Steps = Annotated[
    tuple[Annotated[int, Field(ge=1, le=100_000)], ...],
    Field(min_length=1, max_length=16),
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
]


class Latr(PolicyBase):
    """The settings for countdown, which are the default; those of ``math`` by name.

    A row wants to branch where its second candidate's probability is above ``absolute`` and the
    first one's is less than ``relative`` above it. Rows go on with the arg-max, whatever the
    temperature: a tree is greedy but for its branches. A branch is compared with its parent after
    20, 30 and 50 tokens, and dropped with all that left it where they are too alike.
    """

    needs_ids: ClassVar[str | None] = "it reads the two likeliest tokens of each step"

    policy: Literal["latr"] = "latr"
    n: int = Field(8, ge=2, le=1024, description="rows, the root included")
    task: Literal["countdown", "math"] = "countdown"
    absolute: Probability = 0.25
    relative: Probability = 0.15
    checks: Steps = (20, 30, 50)
    edit: Probability | None = Field(0.4, description="dropped below it; distance over length")
    suffix: Probability | None = Field(
        None, description="dropped above it; of an end that the other has"
    )
    rouge_l: Probability | None = Field(None, description="dropped above it")
    force: int = Field(512, ge=1, le=1_000_000, description="steps; then rows go on by themselves")
    choose: Literal["vote", "root"] = "vote"

    @model_validator(mode="before")
    @classmethod
    def _of_the_task(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("task") == "math":
            own = {"absolute": 0.15, "relative": 0.25, "edit": None, "suffix": 0.2,
                   "rouge_l": 0.5, "force": 1024}  # fmt: skip
            return {**own, **data}
        return data

    @model_validator(mode="after")
    def _sensible(self) -> "Latr":
        allowed = ""
        if any(a >= b for a, b in pairwise(self.checks)):
            allowed = "checks that increase"
        elif self.absolute >= 0.5 or self.relative <= 0:
            allowed = "absolute below 0.5 and relative above 0, or no row ever branches"
        if allowed:
            raise PydanticCustomError("not_allowed", "allowed: {allowed}", {"allowed": allowed})
        return self

    def needed(self) -> Needed:
        """As many forks as rows, at the same time; dropped ones make room for others."""
        return Needed(forks=self.n - 1)


class Rollout:
    """One request."""

    def __init__(self, config: Latr) -> None:
        self._config = config

    async def run(self, page: Page) -> None:
        """Grow the tree, write all rows to their end, and choose."""
        how = page.sampling.model_copy(update={"temperature": 0.0, "top_p": 1.0, "top_k": 0})
        root = page.branch("row", 0, kind="fork")
        root.sampling = how
        pool = Pool(top=3)
        try:
            rows = await self.grow(pool, root, min(self._config.force, page.tokens_left()))
        finally:
            await pool.close()
        failed = [row for row in rows if row.error is not None]
        if len(failed) == len(rows):
            assert failed[0].error is not None
            raise failed[0].error
        rows = [row for row in rows if row.error is None]
        for row in rows:
            settle(row)

        async def write(line: Page) -> float | None:
            if line.state != "eos" or line.answer_at is None:
                await plain(line)
            return None

        lines = [row.page for row in rows]
        await several(lines, write)
        page.desk.notes["lines"] = lines_of(rows)
        if self._config.choose == "root":
            page.adopt(lines[0])
            page.why = "root"
        else:
            elect(page, lines)

    async def grow(self, pool: Pool, root: Page, steps: int) -> list[BranchRow]:
        """The tree's rows after so many steps, in the order of their births."""
        pool.root(root, steps)
        for step in range(steps):
            await pool.reach(step)
            if all(row.is_over(step) for row in pool.rows):
                break
            self._branch(pool, step, steps)
            for row in self._alike(pool, step):
                if row in pool.rows:
                    await pool.prune(pool.descendants(row), "pruned")
        return pool.rows

    def _branch(self, pool: Pool, step: int, steps: int) -> None:
        config = self._config
        room = config.n - len(pool.rows)
        for row in list(pool.rows):
            fact = row.facts[step] if len(row.facts) > step else None
            if row.is_over(step) or fact is None:
                continue
            p1 = math.exp(fact.log_prob)
            # The emitted token is the first candidate: ties are the engine's.
            second = next(((i, v) for i, v in fact.top if i != fact.token), None)
            if second is not None and room > 0:
                p2 = math.exp(second[1])
                if p2 > config.absolute and p1 - p2 < config.relative and self._may(pool, row):
                    new = pool.branch(row, step, second[0], steps - step - 1)
                    new.log_prob = row.log_prob + math.log(p2 + 1e-9)
                    room -= 1
            row.log_prob += math.log(p1 + 1e-9)

    def _may(self, pool: Pool, row: BranchRow) -> bool:
        desk = row.page.desk
        if desk.forks >= desk.frame.limits.forks:
            desk.tree.marks[0].note = f"limits.forks: {desk.frame.limits.forks} are used up"
            return False
        desk.use("forks")
        return True

    def _alike(self, pool: Pool, step: int) -> list[BranchRow]:
        """Branches whose stretch since their birth is too much like their parent's."""
        config = self._config
        found = []
        for length in config.checks:
            for row in pool.rows:
                if row.parent is None or row.birth != step + 1 - length:
                    continue
                a, b = (one.ids[step + 1 - length : step + 1] for one in (row, row.parent))
                eos = row.page.model.vocabulary.eos_ids if row.page.model.vocabulary else ()
                if len(a) < length or len(b) < length or any(i in eos for i in (*a, *b)):
                    continue
                if is_alike(a, b, config):
                    found.append(row)
        return found


def settle(row: BranchRow) -> None:
    """Have a row's page hold what the row has; what came from its parent is its parent's."""
    line = row.page
    marks = [line.mark] * len(row.ids)
    up: BranchRow | None = row
    while up is not None and up.parent is not None:
        for at in range(up.birth):
            marks[at] = up.parent.page.mark
        up = up.parent
    line.atoms = []
    for at, token in enumerate(row.ids):
        # The first token of a branch was drawn by its parent's step.
        line.atoms.append(Atom(token, "", 1, marks[at]))
    line.reread()
    line.mark.end = row.ended or ""


def lines_of(rows: Sequence[BranchRow]) -> list[Any]:
    """What a trainer wants of the rows."""
    number = {id(row): at for at, row in enumerate(rows)}
    return [
        Line(
            tuple(i for i in row.page.ids), row.page.text,
            None if row.parent is None else number.get(id(row.parent)), row.birth, row.log_prob,
        )
        for row in rows
    ]  # fmt: skip


def is_alike(a: Sequence[int], b: Sequence[int], config: Latr) -> bool:
    """Whether a branch is too much like its parent."""
    return (
        (config.edit is not None and edit_distance(a, b) / len(a) < config.edit)
        or (config.suffix is not None and common_suffix(a, b) / len(a) > config.suffix)
        or (config.rouge_l is not None and rouge_l(a, b) > config.rouge_l)
    )


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Levenshtein's."""
    last = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
        last = row
    return last[-1]


def common_suffix(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens of the longest end of one of them that stands anywhere in the other one."""
    return max(_end_within(a, b), _end_within(b, a))


def _end_within(a: Sequence[int], b: Sequence[int]) -> int:
    best = 0
    for stop in range(len(b), 0, -1):
        count = 0
        while count < min(stop, len(a)) and a[-1 - count] == b[stop - 1 - count]:
            count += 1
        best = max(best, count)
    return best


def rouge_l(a: Sequence[int], b: Sequence[int]) -> float:
    """F1 of the longest common subsequence."""
    last = [0] * (len(b) + 1)
    for x in a:
        row = [0]
        for j, y in enumerate(b):
            row.append(last[j] + 1 if x == y else max(last[j + 1], row[-1]))
        last = row
    common = last[-1]
    return 2 * common / (len(a) + len(b)) if common else 0.0


__all__ = ["Latr", "Rollout", "common_suffix", "edit_distance", "rouge_l"]
