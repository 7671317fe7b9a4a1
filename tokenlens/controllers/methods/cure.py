"""CURE's regeneration: second tries from the tokens where the model was unsure.

A first line, then others that begin in front of a token of high entropy, which is drawn again. The
paper trains with such groups; at decoding time they are diverse second tries, which vote.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.controllers.desk import reseeded
from tokenlens.controllers.lines import elect, several, whole
from tokenlens.controllers.methods.self_consistency import chance
from tokenlens.controllers.page import Page
from tokenlens.controllers.settings import Needed, PolicyBase
from tokenlens.routing.signals import TOP
from tokenlens.spec.base import LEAST


class Cure(PolicyBase):
    """A group of ``first`` + ``first`` * ``again`` lines.

    Positions in order of their entropy, but the first one, special tokens and tokens of fewer than
    two characters; one of the ``top`` first, by chance for each second try; where there is none,
    the whole answer again. The authors' way to cut a long prefix, from its newest end, is not
    copied in any profile: a regeneration would begin in a wrong place.
    """

    published: ClassVar[Mapping[str, Any]] = {"each": False}
    needs_ids: ClassVar[str | None] = "it goes back to single tokens"

    policy: Literal["cure"] = "cure"
    first: int = Field(1, ge=1, le=256, description="lines")
    again: int = Field(4, ge=1, le=256, description="second tries of each line")
    top: int = Field(10, ge=1, le=10_000, description="positions")
    temperature: float = Field(
        1.0, ge=LEAST, le=100, description="of second tries of greedy requests"
    )
    each: bool = Field(True, description="a position for each second try; false: one a line")

    def needed(self) -> Needed:
        """As many forks as lines."""
        return Needed(forks=self.first * (1 + self.again))


class Regeneration:
    """One request."""

    def __init__(self, config: Cure) -> None:
        self._config = config

    async def run(self, page: Page) -> None:
        """Write the first lines, then those that leave them, and vote."""
        config = self._config
        page.desk.use("forks", config.first * (1 + config.again))
        lines = [page.branch("line", i) for i in range(config.first)]
        await several(lines, partial(whole, facts=TOP))
        tries = []
        for line in lines:
            places = positions(line)[: config.top]
            for i in range(config.again):
                key = 0 if not config.each else i
                draw = chance(page.desk.seed(*line.path, "position", key))
                at = places[int(draw * len(places))] if places else 0
                second = line.branch("again", i, kind="fork", at=at)
                if second.sampling.temperature == 0:
                    seed = second.sampling.seed
                    second.sampling = reseeded(
                        second.sampling, seed, temperature=config.temperature
                    )
                second.mark.at = at
                tries.append(second)
        await several(tries, whole)
        elect(page, [*lines, *tries])


def positions(line: Page) -> list[int]:
    """Where a second try may begin, the most unsure first."""
    vocabulary = line.model.vocabulary
    assert vocabulary is not None
    special = set(getattr(vocabulary.tokenizer, "all_special_ids", ())) | vocabulary.eos_ids
    nats = {
        at: atom.fact.least_entropy for at, atom in enumerate(line.atoms)
        if at and atom.fact is not None and atom.token not in special
        and len(vocabulary.piece(atom.fact.token).strip()) >= 2
    }  # fmt: skip
    return sorted(nats, key=lambda at: (-nats[at], at))
