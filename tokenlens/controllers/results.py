"""What a request returns: its text, and the lines that were not chosen. Knows no method."""

from dataclasses import dataclass

from tokenlens.controllers.tree import SteerTrace
from tokenlens.routing.router import Routed


@dataclass(frozen=True)
class Line:
    """One of the lines that a request wrote; methods that branch keep all of them.

    Attributes
    ----------
    parent, birth
        The line that it left, and the tokens that it had then.
    log_prob
        Sum over its tokens, where the method has it.
    """

    ids: tuple[int, ...]
    text: str
    parent: int | None = None
    birth: int = 0
    log_prob: float | None = None


@dataclass(frozen=True)
class Steered(Routed):
    """One text, and how it came about.

    Attributes
    ----------
    answer
        What the text answers, as the spec reads it; ``None`` where it ends inside the thinking.
    lines
        All whole lines that the method wrote, for trainers; empty where there was one.
    """

    trace: SteerTrace  # type: ignore[assignment]
    answer: str | None = None
    lines: tuple[Line, ...] = ()
